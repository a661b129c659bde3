"""What the pretended device refuses, as CUDA does, and what it leaves alone."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from fedlora.streams import forked
from tests.pretended.device import module
from tests.pretended.plan import DEVICE
from tests.pretended.watched import watched


def refused() -> dict[str, Any]:
    """By name: the error of each, or None."""
    here, there = torch.ones(3, device=DEVICE), torch.ones(3)
    generator = torch.Generator().manual_seed(0)
    tried: dict[str, Callable[[], object]] = {
        "sum of two devices": lambda: here + there,
        "comparison of two devices": lambda: torch.equal(here, there),
        "numpy": here.numpy,
        "a generator of the CPU": lambda: torch.rand(3, device=DEVICE, generator=generator),
        "draws by one of the CPU": lambda: torch.multinomial(here, 1, generator=generator),
    }
    return {name: _error(what) for name, what in tried.items()}


def _error(what: Callable[[], object]) -> str | None:
    try:
        what()
    except (RuntimeError, TypeError) as e:
        return f"{type(e).__name__}: {e}"
    return None


def counted() -> dict[str, Any]:
    """By name: for how many waits each counts."""
    x, mask = torch.ones(3, device=DEVICE), torch.tensor([True, False, True], device=DEVICE)
    rows = torch.tensor([0, 2]).to(DEVICE, non_blocking=True)
    done: dict[str, Callable[[], object]] = {
        "item": lambda: x[0].item(),
        "float": lambda: float(x.sum()),
        "cpu": x.cpu,
        "tolist": x.tolist,
        "mask": lambda: x[mask],
        "nonzero": lambda: x.nonzero(),
        "to": lambda: torch.ones(3).to(DEVICE),
        "tensor": lambda: torch.tensor([1.0, 2.0], device=DEVICE),
        "a list as indices": lambda: x[[0, 2]],
        "product": lambda: x @ x,
        "masked number": lambda: x.masked_fill_(mask, 0.0),
        "set by mask": lambda: x.__setitem__(mask, 0.0),
        "rows": lambda: x[rows],
        "non-blocking": lambda: torch.ones(3).to(DEVICE, non_blocking=True),
    }
    found = {}
    for name, what in done.items():
        with watched() as seen:
            what()
        found[name] = seen.waits.total()
    return found


def forks() -> dict[str, Any]:
    """Whether `forked` seeds the device's generator too, puts it back, and leaves a device alone
    that is not in use."""
    x = torch.ones(64, device=DEVICE)
    before = module.get_rng_state()
    drawn = []
    for _ in range(2):
        with forked(3, "x"):
            drawn.append(F.dropout(x).tolist())
    told = {"same": drawn[0] == drawn[1], "back": torch.equal(before, module.get_rng_state())}
    module.is_initialized = lambda: False  # type: ignore[method-assign]
    with forked(3, "x"):
        told["alone"] = torch.equal(before, module.get_rng_state())
    del module.is_initialized
    return told
