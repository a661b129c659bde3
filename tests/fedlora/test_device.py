"""What `auto` stands for: the device, the base's format on it, worker processes; and that nodes
have one format."""

import pytest
import torch

from fedlora.agreement import differences
from fedlora.config import Config
from fedlora.device import settled
from simulations import plan


def machine(monkeypatch: pytest.MonkeyPatch, gpu: bool, bf16: bool = False) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16)


@pytest.mark.parametrize(
    ("gpu", "bf16", "model", "expected"),
    [
        (False, False, {}, ("cpu", "fp32")),
        (True, True, {}, ("cuda", "bf16")),
        (True, False, {}, ("cuda", "fp32")),
        (True, True, {"dtype": "fp16"}, ("cuda", "fp16")),
        (False, False, {"quantize": "4bit"}, ("cpu", "bf16")),
    ],
)
def test_what_auto_stands_for(
    monkeypatch: pytest.MonkeyPatch,
    gpu: bool,
    bf16: bool,
    model: dict[str, str],
    expected: tuple[str, str],
) -> None:
    """The GPU where there is one, in bf16 where it has that; what is set stays."""
    machine(monkeypatch, gpu, bf16)
    config = Config.model_validate({"model": model})
    found = settled(config)
    assert (found.simulation.device, found.model.dtype) == expected
    node = settled(config, "cpu")
    assert node.simulation.device == "cpu"


def test_one_worker_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each holds the model anew; on a CPU one a core, and as many as are asked for anywhere."""
    monkeypatch.setattr(plan.os, "cpu_count", lambda: 6)
    config, asked = (Config.model_validate({"simulation": s}) for s in ({}, {"workers": 3}))
    for gpu, expected in ((False, 6), (True, 1)):
        machine(monkeypatch, gpu)
        assert (plan.workers(config), plan.workers(asked)) == (expected, 3)


def test_another_format_is_said() -> None:
    """A node with another one has another base; which, and what to set."""
    (said,) = differences({"format": "bf16"}, {"format": "fp32"})
    assert "a base in fp32 in place of bf16" in said and "model.dtype" in said
    assert not differences({"format": "bf16"}, {"format": "bf16"})
