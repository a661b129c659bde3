"""What a step of each loop has the device do: from a training of few steps and one of more."""

from collections import Counter
from collections.abc import Callable
from typing import Any
from unittest.mock import Mock, patch

import torch

from fedlora import config, evaluation, settings, stacking, training
from fedlora.privacy import stacking as private_stacking
from fedlora.privacy import training as private_training
from fedlora.privacy.accounting import Mechanism
from fedlora.progress import Observer
from fedlora.resident import Node, Resident
from fedlora.stacking import Member
from server.base import ServerBase
from server.roster import Roster
from strategies import load
from tests.pretended.plan import DEVICE, LOOPS, USUAL
from tests.pretended.watched import watched

FEW, MORE = 2, 5  # steps
PARTS = {"A", "B"}
NOISE = Mechanism(noise_multiplier=1.0, sample_rate=0.5, delta=1e-5)
SECRETS = [b"1" * 32, b"2" * 32]


class Loops:
    """Each of `LOOPS` by name, for so many steps; the tiny Llama is on the device."""

    def __init__(self, words: list[str], owned: bool = False) -> None:
        tree = settings.parse([*USUAL, *words, f"simulation.device={DEVICE}"])
        owner = Node("rows.jsonl", "ann", DEVICE) if owned else Node()
        self.resident = Resident(*settings.resolve(tree, load), owner)
        self.task, self.adapter = self.resident.task, self.resident.adapter
        self.privacy = self.resident.config.privacy
        initial, clients = self.adapter.initial(), self.resident.federation.clients
        rows = {c: self.resident.encoded(c, "train") for c in clients}
        self.members = [Member(initial, 2.0, rows[c], (0, c)) for c in clients]
        self.rows = self.members[0].encoded
        self.passes = 0
        self.adapter.model.register_forward_pre_hook(self._pass)

    def plain(self, steps: int) -> None:
        training.train(self.task, self.adapter, PARTS, self.rows, self._steps(steps), (0,))

    classified = plain

    def stacked(self, steps: int) -> None:
        stacking.train(self.task, self.adapter, self.members, PARTS, self._steps(steps))

    bf16 = stacked

    def private(self, steps: int) -> None:
        private_training.train(
            self.task,
            self.adapter,
            PARTS,
            self.rows,
            self._steps(steps),
            self.privacy,
            NOISE,
            SECRETS[0],
            steady=self.resident.hides,
        )

    hooks = owned = private

    def private_stacked(self, steps: int) -> None:
        train, noises = self._steps(steps), [(NOISE, secret) for secret in SECRETS]
        private_stacking.train(
            self.task, self.adapter, self.members, noises, PARTS, train, self.privacy
        )

    def evaluate(self, passes: int) -> None:
        most = 24 * len(self.rows) // passes  # padded tokens of one
        evaluation.evaluate(self.task, self.adapter.model, self.rows, most)
        stacking.evaluate(self.task, self.adapter, self.members, most)

    def _pass(self, *_: object) -> None:
        self.passes += 1

    def _steps(self, steps: int) -> config.Train:
        return self.resident.config.train.model_copy(update={"steps": steps})


def boundary() -> dict[str, Any]:
    """Where things are that a model gives: what a method sees, what clients hand back."""
    loops = Loops([])
    base = ServerBase(loops.resident, Mock(), Roster(), Observer())
    module, adapter = next(iter(base.shapes)), loops.adapter
    given = {
        "weight": base.weight(module),
        "gradient": base.gradient(module),
        "initial": base.initial()[f"{module}.A"],
        "read": adapter.read(PARTS)[f"{module}.B"],
    }
    return {name: str(t.device) for name, t in given.items()}


def rest() -> dict[str, Any]:
    """A model that rests: where all of it is, where what a method's first state is made of, and
    whether a gradient is what it is without rest, after which the model rests again. (That is noted
    and not done, as the pretended device keeps hold of what had gradients.)"""
    usual, loops = Loops([]), Loops([])
    base = ServerBase(loops.resident, Mock(), Roster(), Observer())
    module, state = next(iter(base.shapes)), loops.adapter.model.state_dict
    loops.resident.rest()
    places = {str(t.device) for t in state().values()}
    weight = base.weight(module)
    with patch.object(Resident, "rest") as again:
        gradient = base.gradient(module)
    expected = ServerBase(usual.resident, Mock(), Roster(), Observer()).gradient(module)
    return {
        "model": sorted(places),
        "weight": str(weight.device),
        "gradient": str(gradient.device),
        "same": bool(gradient.any()) and torch.equal(gradient, expected),
        "again": again.call_count,
    }


def watched_steps(name: str) -> dict[str, Any]:
    """What each further step does, by the line that asks for it."""
    loops = Loops(LOOPS[name], owned=name == "owned")
    return _each(loops, getattr(loops, name))


def watched_passes() -> dict[str, Any]:
    """What more passes of an evaluation do, alone and stacked."""
    loops = Loops([])
    return _each(loops, loops.evaluate)


def _each(loops: Loops, loop: Callable[[int], None]) -> dict[str, Any]:
    found, passes = [], []
    for count in (FEW, MORE):
        loops.passes = 0
        with watched() as seen:
            loop(count)
        found.append(seen)
        passes.append(loops.passes)
    few, more = found

    def grown(kind: str) -> dict[str, float]:
        counts: Counter[str] = getattr(more, kind) - getattr(few, kind)
        return {line: n / (MORE - FEW) for line, n in sorted(counts.items())}

    return {
        "passes": (passes[1] - passes[0]) / (MORE - FEW),
        "waits": grown("waits"),
        "copies": grown("copies"),
        "formats": sorted(more.products),
    }
