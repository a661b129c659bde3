"""Which adapted layers a pass through a model comes to, and whether it gives them the batch's rows:
tried on a row of nobody's, as models' code says it nowhere.

Most layers are given (b, …) for b rows. Some models lay all tokens end to end before a layer
(OPT's fc1), or have time before rows (XLNet): there nobody can tell whose a row is. Some mix what
pads a row with its words (ConvBERT), so that a row is another in other company. And some layers are
not on the way of a text at all, as a vision tower's.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor

from fedlora.adapters import Adapter
from fedlora.adapters.stacked import stacked
from fedlora.errors import UserError
from fedlora.evaluation import evaluating
from fedlora.tasks import Task
from fedlora.tensors import select

TOKENS = 8  # of the row: more than its rows
CLOSE = 1e-2  # of the largest hidden number: more than rounding


@dataclass
class Reached:
    """Of one row's pass: `apart` is why rows cannot each go through an adapter of their own, or "";
    `missed` are adapted layers that it did not come to."""

    apart: str = ""
    missed: list[str] = field(default_factory=list)
    layers: int = 0  # that are adapted

    def told(self) -> str:
        """What it did not come to, in words, or ""."""
        if not (names := self.missed):
            return ""
        return (
            f"{len(names)} of {self.layers} adapted layers are on no row's way and learn nothing "
            f"({', '.join(names[:3])}{', …' if names[3:] else ''}): adapter.target_modules can "
            "leave them out"
        )


def reached(task: Task, adapter: Adapter, private: bool = False) -> Reached:
    """What a pass comes to; nothing is known where the model takes no such row.

    Args:
        private: whether each row's own gradient is asked for.

    Raises:
        UserError: it comes to no adapted layer; or rows cannot be told apart where they have to be.
    """
    short, long = (task.blank(min(n, task.max_length)) for n in (TOKENS, 3 * TOKENS))

    def go(*rows: Any) -> None:
        batch = task.batch(type(short).joined(rows or [short]), range(len(rows) or 1))
        with torch.no_grad(), evaluating(adapter.model):
            task.losses(adapter.model, batch)

    try:
        rows = _seen(adapter, go)
    except Exception:  # whoever trains on rows of its own says why
        return Reached()
    missed = [name for name in adapter.shapes if name not in rows]
    if len(missed) == len(adapter.shapes):
        raise UserError(
            f"no row comes to any layer that adapter.target_modules selects ({missed[0]}, …): name "
            "others"
        )
    found = Reached(_apart(adapter, rows, go), missed, len(adapter.shapes))
    if private and found.apart:
        raise UserError(f"private training takes each row's own gradient, and {found.apart}")
    if not found.apart and _mixes(adapter, partial(go, short), partial(go, short, long)):
        found.apart = "the model reads a row otherwise beside a longer one, to which it is padded"
    return found


def _seen(adapter: Adapter, go: Callable[[], None]) -> dict[str, int]:
    """The adapted layers and heads that a pass of one row comes to, and how many rows each is
    given; of several numbers the first that is not one."""
    base, found = adapter.model.get_base_model(), dict[str, int]()
    watched: dict[str, Any] = {name: base.get_submodule(name) for name in adapter.shapes}
    watched |= {k: m for k, m in base.named_modules() if isinstance(m, ModulesToSaveWrapper)}

    def note(name: str, _: object, inputs: tuple[Any, ...]) -> None:
        given = next((len(x) for x in inputs if isinstance(x, Tensor) and x.ndim), 1)
        if found.get(name, 1) == 1:
            found[name] = given

    handles = [m.register_forward_pre_hook(partial(note, k)) for k, m in watched.items()]
    try:
        go()
    finally:
        for handle in handles:
            handle.remove()
    return found


def _mixes(adapter: Adapter, alone: Callable[[], None], beside: Callable[[], None]) -> bool:
    """Whether what a model makes of a row is something else beside a longer one."""
    try:
        one, other = (_hidden(adapter, go) for go in (alone, beside))
    except Exception:  # of a model that reads rows of some lengths only
        return False
    if one is None or other is None or len(other) != 2 or one.shape[1] > other.shape[1]:
        return False
    h, padded = one[0].float(), other[0, : one.shape[1]].float()
    return float((h - padded).abs().max() / h.abs().max()) > CLOSE


def _hidden(adapter: Adapter, go: Callable[[], None]) -> Tensor | None:
    """(b, t, d): what comes out of a model's body in a pass, where it is such a tensor."""
    base: Any = adapter.model.get_base_model()
    seen: list[Any] = []
    handle = base.base_model.register_forward_hook(lambda _, inputs, output: seen.append(output[0]))
    try:
        go()
    finally:
        handle.remove()
    first = seen[0] if seen else None  # a language model's tail calls the body again
    return first if isinstance(first, Tensor) and first.ndim == 3 and first.numel() else None


def _apart(adapter: Adapter, rows: dict[str, int], go: Callable[[], None]) -> str:
    """Why rows cannot each go through an adapter of their own, or ""."""
    for name, given in rows.items():
        if given != 1:
            return (
                f"{name} is given {given} rows where the batch has 1, so nobody can tell whose "
                "they are: adapter.target_modules can leave it out"
            )
    trained = select(adapter.live(), adapter.parts)
    try:
        copies = {k: t.detach()[None] for k, t in trained.items()}
        with stacked(adapter, trained) as enter, enter(copies, [1], None):
            go()
    except Exception as error:  # of a head's own code, run copy by copy
        return str(error)
    return ""
