"""A language model's federation on a GPU, where there is one."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from tests.fedlora.tasks import talk
from tests.test_llm_path import SETTINGS, Call, fedlora, folder, rounds  # noqa: F401

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
QUANTISED = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes")


@pytest.mark.parametrize(
    "base",
    [
        ["model.dtype=bf16"],
        pytest.param(["model.quantize=4bit"], marks=QUANTISED),
        pytest.param(["model.quantize=8bit"], marks=QUANTISED),
    ],
    ids=lambda base: base[0],
)
@pytest.mark.parametrize("again", ["false", "true"], ids=["kept", "recomputed"])
def test_it_learns_and_is_exported(
    base: list[str],
    again: str,
    fedlora: Call,  # noqa: F811
    folder: Path,  # noqa: F811
) -> None:
    """In bf16 and quantised, with and without recomputing, in worker processes' way of sharing
    passes; its answers come from the GPU too."""
    talk.save(folder / "wide", hidden_size=64, intermediate_size=128)
    name = f"run.name=gpu-{base[0][-4:]}-{again}"
    more = ["model.name=wide", f"model.gradient_checkpointing={again}", "simulation.device=cuda"]
    code, _, error = fedlora("run", *SETTINGS, *base, *more, "train.lr=0.02", name)
    assert code == 0, error
    run = folder / "runs" / name[9:]
    first, *_, last = rounds(run)
    assert last["test_loss"] < first["test_loss"] and last["f1"] is not None
    assert (run / "adapter/adapter_model.safetensors").is_file()
