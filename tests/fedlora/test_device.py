"""What `auto` stands for: the device, the base's format on it, worker processes; and that nodes
have one format."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from fedlora.agreement import differences
from fedlora.config import Config
from fedlora.device import cards, free, prepare, settled
from fedlora.errors import UserError
from fedlora.resident import Node, Resident
from fedlora.settings import resolve
from simulations import plan
from strategies import load


def machine(monkeypatch: pytest.MonkeyPatch, gpu: bool, bf16: bool = False) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16)


@pytest.mark.parametrize(
    ("gpu", "bf16", "model", "expected"),
    [
        (False, False, {}, ("cpu", "fp32")),
        (True, True, {}, ("cuda", "bf16")),
        (True, False, {}, ("cuda", "fp32")),
        (True, True, {"dtype": "fp32"}, ("cuda", "fp32")),
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


@pytest.fixture
def arithmetic(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], dict[str, object]]]:
    """How this process computes; afterwards it does as before."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    yield lambda: {
        "same": torch.are_deterministic_algorithms_enabled(),
        "warn": torch.is_deterministic_algorithms_warn_only_enabled(),
        "cudnn": torch.backends.cudnn.deterministic,
        "workspace": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
        "fp32": torch.backends.cuda.matmul.fp32_precision,
    }
    prepare(settled(Config(), "cpu"))


PLAIN = {"same": False, "warn": False, "cudnn": False, "workspace": None, "fp32": "none"}
SAME = {**PLAIN, "same": True, "cudnn": True, "workspace": ":4096:8"}


@pytest.mark.parametrize(
    ("device", "given", "expected"),
    [
        ("cpu", {}, PLAIN),
        ("cuda:0", {}, SAME),
        ("cuda:0", {"simulation": {"deterministic": False}}, PLAIN),
        ("cuda:0", {"model": {"tf32": True}}, {**SAME, "fp32": "tf32"}),
    ],
)
def test_whoever_has_a_model_computes_as_is_set(
    arithmetic: Callable[[], dict[str, object]],
    device: str,
    given: dict[str, Any],
    expected: dict[str, object],
) -> None:
    """Workers, server and nodes all have a Resident: with the same bits each time on a GPU, before
    it computes anything, in TF32 only where that is asked for; a CPU is left alone."""
    config, strategy = resolve(given, load)
    Resident(config, strategy, Node(device=device))
    assert arithmetic() == expected


def test_fp16_is_refused_with_the_reason() -> None:
    with pytest.raises(UserError, match="no loss is scaled here: take bf16"):
        resolve({"model": {"dtype": "fp16"}}, load)


def test_one_worker_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each holds the model anew; on a CPU one a core, and as many as are asked for anywhere."""
    monkeypatch.setattr(plan.os, "cpu_count", lambda: 6)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    given: list[dict[str, object]] = [{}, {"workers": 6}, {"device": "cuda:2"}]
    config, asked, one = (Config.model_validate({"simulation": s}) for s in given)
    for gpu, expected in ((False, 6), (True, 4)):
        machine(monkeypatch, gpu)
        assert (plan.workers(config), plan.workers(asked)) == (expected, 6)
        assert plan.beside(asked) == (2 if gpu else 6)
    assert plan.workers(one) == 1


@pytest.mark.parametrize(
    ("visible", "device", "expected"),
    [
        (None, "cuda", ["0", "1", "2"]),
        ("5,GPU-7f,2", "auto", ["5", "GPU-7f", "2"]),
        ("5,GPU-7f,2", "cuda:1", ["GPU-7f"]),
        (None, "cuda:1", ["1"]),
        ("5", "cpu", []),
    ],
)
def test_gpus_by_name(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, device: str, expected: list[str]
) -> None:
    """Of those that this process was left, in its own order."""
    machine(monkeypatch, gpu=True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert cards(device) == expected


def test_a_gpu_has_memory_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody has of it, and what torch holds for later."""
    told = {"mem_get_info": (700, 9000), "memory_reserved": 50, "memory_allocated": 20}
    for name, value in told.items():
        monkeypatch.setattr(torch.cuda, name, lambda place, value=value: value)
    assert free("cuda:1") == 730
    assert free("cpu") > 10**6


def test_another_format_is_said() -> None:
    """A node with another one has another base; which, and what to set."""
    (said,) = differences({"format": "bf16"}, {"format": "fp32"})
    assert "a base in fp32 in place of bf16" in said and "model.dtype" in said
    assert not differences({"format": "bf16"}, {"format": "bf16"})
