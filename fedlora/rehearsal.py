"""A round rehearsed on tensors that have shapes and no values (torch's meta device): what a method
would send is counted by the code that sends it.

A hook that wants values, a norm say, cannot be rehearsed. Then something in its place is counted,
and a note says what.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from fedlora import guard
from fedlora.errors import MethodError
from fedlora.strategy import Base, Client, Round, Strategy, Update, merge, stays
from fedlora.tensors import Tensors, part_of, select

T = TypeVar("T")

INSTEAD = {
    "begin": "counted is the first state of the adapter itself",
    "broadcast": "counted is what a method sends that leaves it alone, the whole state",
    "upload": "counted is everything that it may send",
    "aggregate": "counted is that what clients send up changes, and nothing else does",
}

METRICS = {"loss": 1.0, "seconds": 1.0}  # which a client tells beside its tensors
# What torch and numpy say of tensors without values.
VALUELESS = re.compile(r"(?i)\bmeta (tensor|device)|\bdevice meta\b|'meta' device|register_meta")


@dataclass(frozen=True)
class Counted:
    """What one client trains, sends, and is sent, at first and in the round after: shapes alone."""

    trained: Tensors
    up: Tensors
    first: Tensors
    later: Tensors


@dataclass
class Rehearsal:
    """A method's hooks on an adapter of these trainable parts; `notes` say what was not asked."""

    strategy: Strategy
    base: Base
    parts: set[str]
    notes: dict[str, str] = field(default_factory=dict)
    states: list[Tensors] = field(default_factory=list)  # the first, and the one after round `one`

    def started(self, clients: Sequence[Client], round: Round) -> tuple[Tensors, list[Counted]]:
        """The first state, and of each client what it is sent and trains."""
        state = merge({}, self._hook("begin", self._begun, self.base.initial))
        trains = guard.trains(self.strategy, round, self.parts)
        views = [self._view(state, c, round) for c in clients]
        own = [_trained(select(v, trains)) for v in views]
        return state, [Counted(t, {}, v, {}) for t, v in zip(own, views, strict=True)]

    def played(self, clients: Sequence[Client], one: Round, two: Round) -> list[Counted]:
        """Round `one` with all of these clients, equally weighted, and what `two` sends them."""
        state, begun = self.started(clients, one)
        ups = [self._sent(c.trained, who, one) for c, who in zip(begun, clients, strict=True)]
        updates = [
            Update(who, up, c.first, 1 / len(clients), METRICS)
            for who, up, c in zip(clients, ups, begun, strict=True)
        ]
        self.states = [state, merge(state, self._aggregated(state, updates, one))]
        state = self.states[-1]
        views = [self._view(state, who, two) for who in clients]
        private = stays(self.strategy)
        return [
            Counted(c.trained, up, c.first, _lacking(view, c.first, private))
            for c, up, view in zip(begun, ups, views, strict=True)
        ]

    def _begun(self) -> guard.Changes:
        first = guard.called(self.strategy, "begin", self.base)
        return guard.changes(self.strategy, "begin", first, self.base.initial())

    def _view(self, state: Tensors, client: Client, round: Round) -> Tensors:
        given = (self.strategy, state, client, round)
        return self._hook(
            "broadcast", partial(guard.view, *given), partial(Strategy.broadcast, *given)
        )

    def _sent(self, trained: Tensors, client: Client, round: Round) -> Tensors:
        parts = guard.sends(self.strategy, round, self.parts)
        asked = partial(guard.uploaded, self.strategy, trained, client, round, self.parts)
        return self._hook("upload", asked, partial(select, trained, parts))

    def _aggregated(
        self, state: Tensors, updates: Sequence[Update], round: Round
    ) -> Mapping[str, Tensor | None]:
        def asked() -> guard.Changes:
            found = guard.called(self.strategy, "aggregate", state, updates, round)
            return guard.changes(self.strategy, "aggregate", found, state)

        def uploads() -> guard.Changes:
            names = [k for k in state if any(k in u.tensors for u in updates)]
            return {**_trained({k: state[k] for k in names})}

        return self._hook("aggregate", asked, uploads)

    def _hook(self, hook: str, asked: Callable[[], T], instead: Callable[[], T]) -> T:
        try:
            return asked()
        except MethodError as e:
            if not _wants_values(e.__cause__):
                raise
            where = f"{type(self.strategy).__name__}.{hook}"
            self.notes[hook] = f"{where} wants values, and here are none: {INSTEAD[hook]}"
            return instead()


def _trained(tensors: Tensors) -> Tensors:
    """Others in the place of these. A method may have made some with values: those get values too,
    and not whatever lies in memory, which may be no number."""
    return {k: torch.ones_like(t) for k, t in tensors.items()}


def _wants_values(e: BaseException | None) -> bool:
    """Whether torch itself raised this, for want of values; a method's own error is none of it."""
    own = type(e) in (NotImplementedError, RuntimeError, TypeError)
    return own and VALUELESS.search(str(e)) is not None


def _lacking(view: Tensors, held: Tensors, private: set[str]) -> Tensors:
    """What of a view has to be sent: tensors that are new since, but those that stay with clients.
    Without values a tensor is the same where it is the same object."""
    return {k: t for k, t in view.items() if part_of(k) not in private and t is not held.get(k)}
