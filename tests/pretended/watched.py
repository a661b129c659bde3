"""What a piece of code has the pretended device do: for what the host waits, what is copied there,
and in which formats it multiplies; each by the project's own line that asked for it.

A wait is what stops the host until everything that a GPU was given before is done:

    a value read                 .item(), float(), bool(), .tolist(), torch.equal
    a copy to the CPU            .cpu(), .to("cpu")
    a copy from the CPU          unless it is non_blocking: a CUDA copy of ordinary memory waits too
    a shape that values decide   nonzero, bincount, unique, x[mask], and x[mask] = y (but a number)
"""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.pretended.device import INDEXING, Pretended, aten, watchers

ROOT = Path(__file__).parents[2]
PACKAGES = tuple(
    str(ROOT / name) + "/" for name in ("fedlora", "strategies", "clients", "server", "simulations")
)

READ = {"_local_scalar_dense", "equal", "is_nonzero"}
SHAPED = {"nonzero", "masked_select", "bincount", "_unique2", "unique_dim", "unique_consecutive"}
PRODUCTS = {"mm", "bmm", "addmm", "baddbmm"}


@dataclass
class Seen:
    """Each by "file:line what", of the first of the project's lines that led to it."""

    waits: Counter[str] = field(default_factory=Counter)
    copies: Counter[str] = field(default_factory=Counter)  # from the CPU to the device
    products: Counter[str] = field(default_factory=Counter)  # of matrices, with their format

    def note(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], found: Any) -> None:
        """One operator; see `tests.pretended.device.watchers`."""
        name = func.overloadpacket.__name__
        way = _crossed(func, args, kwargs)
        if way == "there":
            self.copies[_line("copy")] += 1
        if way and not (way == "there" and _non_blocking(func, args, kwargs)):
            self.waits[_line(f"copy {way}")] += 1
        elif name in READ | SHAPED or _masked(func, args):
            self.waits[_line(name)] += 1
        elif name in PRODUCTS:
            self.products[_line(str(found.dtype).removeprefix("torch."))] += 1


@contextmanager
def watched() -> Iterator[Seen]:
    """What is done inside."""
    seen = Seen()
    watchers.append(seen.note)
    try:
        yield seen
    finally:
        watchers.remove(seen.note)


def _crossed(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Which way an operator copies values between CPU and device: "there", "back" or neither."""
    if func is aten._to_copy.default:
        source, to = args[0], kwargs.get("device")
        here = isinstance(source, Pretended)
        there = here if to is None else torch.device(to).type != "cpu"
    elif func is aten.copy_.default:
        there, here = (isinstance(t, Pretended) for t in args[:2])
    elif func in INDEXING:
        others = [x for x in _indices(args) if not isinstance(x, Pretended) and x.dim()]
        return "there" if others and isinstance(args[0], Pretended) else ""
    else:
        return ""
    return "" if here == there else "there" if there else "back"


def _non_blocking(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return bool(kwargs.get("non_blocking") or (func is aten.copy_.default and args[2:] == (True,)))


def _masked(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether a mask says which values are meant; setting them to one number is done in place."""
    if func not in INDEXING or not any(
        x.dtype in (torch.bool, torch.uint8) for x in _indices(args)
    ):
        return False
    return func is aten.index.Tensor or args[2].numel() != 1


def _indices(args: tuple[Any, ...]) -> list[Tensor]:
    return [x for x in args[1] if isinstance(x, Tensor)]


def _line(what: str) -> str:
    """`what` after the innermost of the project's lines on this thread; the backward pass has a
    thread of its own."""
    frame = sys._getframe(1)
    while frame and not frame.f_code.co_filename.startswith(PACKAGES):
        frame = frame.f_back  # type: ignore[assignment]
    if not frame:
        return f"elsewhere {what}"
    return f"{Path(frame.f_code.co_filename).relative_to(ROOT)}:{frame.f_lineno} {what}"
