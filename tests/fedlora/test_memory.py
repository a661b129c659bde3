"""The memory that a client needs, estimated from a configuration, against what real models take."""

from pathlib import Path
from typing import Any

import pytest
import torch

from fedlora.adapters import Adapter
from fedlora.config import Config
from fedlora.cost import cost, skeleton
from fedlora.device import DTYPES, settled
from fedlora.footprint import UNDER_WAY, kept
from fedlora.memory import Memory, memory
from fedlora.resident import Resident
from fedlora.settings import resolve
from strategies import load
from tests.fedlora import architectures
from tests.fedlora.tasks import talk

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("memory")
    talk.save(made / "model", hidden_size=64, intermediate_size=128, num_hidden_layers=4)
    talk.rows(made / "rows.jsonl")
    return made


def resident(folder: Path, **fields: Any) -> Resident:
    tree: dict[str, Any] = {
        "model": {"name": str(folder / "model"), "task": "instruction"},
        "data": {"name": str(folder / "rows.jsonl"), "max_length": 48, "test": 0.1},
        "adapter": {"rank": 4, "target_modules": "all-linear"},
        "train": {"batch_size": 4},
        "strategy": {"name": "fedit"},
    }
    for name, value in fields.items():
        section, _, key = name.partition("__")
        tree[section][key] = value
    return Resident(*resolve(tree, load))


def estimated(config: Config, made: Resident) -> Memory:
    found = cost(config, made.strategy)
    return memory(config, skeleton(config.model), found.parameters, found.trained_parameters)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("again", [False, True], ids=["kept", "recomputed"])
def test_it_is_what_a_model_takes(folder: Path, dtype: str, again: bool) -> None:
    """The base to the byte; the adapter with gradients and moments to the byte; and what a pass
    keeps for its way back not to be less than it is, and at most a seventh more, with and without
    recomputing."""
    made = resident(folder, model__dtype=dtype, model__gradient_checkpointing=again)
    found = estimated(made.config, made)
    adapter = made.adapter
    frozen = {id(p): p for p in adapter.model.parameters()}
    parts = adapter.live()
    own = sum(t.numel() for t in parts.values())
    base = sum(p.numel() * p.element_size() for p in frozen.values()) - own * 4
    assert (
        found.base == base
        and DTYPES[dtype] == adapter.base(next(iter(adapter.shapes))).weight.dtype
    )
    assert found.adapter == 4 * own * 4

    blank = made.task.blank(48)
    blank.inputs["labels"][:] = 0  # all of it is learnt
    adapter.trainable(adapter.parts)
    adapter.model.train()
    batch = made.task.batch(blank, [0])
    real = kept(adapter.model, lambda: made.task.losses(adapter.model, batch))
    assert 0.999 < found.passes / (UNDER_WAY * real * 4) < 1.15


@pytest.mark.parametrize("again", [False, True], ids=["kept", "recomputed"])
def test_it_is_what_a_classifier_takes(again: bool) -> None:
    """MiniLM, a BERT whose head is trained, by the same measure."""
    tree = {
        "model": {"gradient_checkpointing": again},
        "data": {"max_length": 48},
        "train": {"batch_size": 4},
        "strategy": {"name": "fedit"},
    }
    made = Resident(*resolve(tree, load))
    model, found = made.adapter.model, estimated(made.config, made)
    ids = torch.zeros(1, 48, dtype=torch.int64)

    def loss() -> torch.Tensor:
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        return torch.nn.functional.cross_entropy(logits, torch.zeros(1, dtype=torch.int64))

    made.adapter.trainable(made.adapter.parts)
    model.train()
    assert 0.999 < found.passes / (UNDER_WAY * kept(model, loss) * 4) < 1.15


def test_recomputing_and_smaller_passes_take_less(folder: Path) -> None:
    """What they are for; and more rows or longer ones take more."""
    plain, again, micro, long = (
        estimated(made.config, made).passes
        for made in (
            resident(folder),
            resident(folder, model__gradient_checkpointing=True),
            resident(folder, train__micro_batch=1),
            resident(folder, data__max_length=64),
        )
    )
    assert again < 0.6 * plain and micro == pytest.approx(plain / 4, rel=0.01) and long > plain


@pytest.mark.parametrize(("quantize", "gigabytes"), [(None, 16.06), ("8bit", 9.08), ("4bit", 5.7)])
def test_a_large_model_is_counted_without_being_made(
    quantize: str | None, gigabytes: float
) -> None:
    """Llama-3-8B: 8.03e9 parameters in bf16, of which 6.98e9 can be quantised, 1.05e9 are
    embeddings and output layer."""
    tree = {
        "model": {
            "name": str(CONFIGS / "llama-3-8b"), "task": "instruction",
            "dtype": "bf16", "quantize": quantize, "gradient_checkpointing": True,
        },
        "data": {"max_length": 512},
        "strategy": {"name": "fedit"},
    }  # fmt: skip
    config, strategy = resolve(tree, load)
    found = cost(config, strategy)
    made = memory(config, skeleton(config.model), found.parameters, found.trained_parameters)
    assert made.base / 1e9 == pytest.approx(gigabytes, rel=0.01)
    assert found.trained_parameters == 3_407_872 and made.adapter == 16 * 3_407_872
    assert settled(config).model.dtype == "bf16"
    assert 0.2e9 < made.passes < 8e9


@pytest.mark.parametrize(("kind", "task"), [("mixtral", "instruction"), ("t5", "classification")])
def test_where_shapes_alone_do_not_do_it_is_near_what_a_pass_takes(
    kind: str, task: str, tmp_path: Path
) -> None:
    """A mixture's experts, whose products have none in fp32; and code that looks at values."""
    own = architectures.task(kind, task, tmp_path / "model")
    tree = {
        "model": {"name": str(tmp_path / "model"), "task": task},
        "data": {"max_length": 32},
        "adapter": {"rank": 2, "target_modules": "all-linear"},
        "train": {"batch_size": 1},
    }
    config, strategy = resolve(tree, load)
    found = cost(config, strategy)
    said = memory(config, skeleton(config.model), found.parameters, found.trained_parameters)
    made = Adapter(own.model(0), config.adapter, seed=0)
    made.trainable(made.parts)
    made.model.train()
    batch = own.batch(own.blank(32), [0])
    taken = UNDER_WAY * kept(made.model, lambda: own.losses(made.model, batch))
    assert taken / 2 < said.passes < 3 * taken, said.passes / taken
