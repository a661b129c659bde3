"""The configuration's optimizers under DP-SGD: they move what is private already."""

from dataclasses import replace

import pytest
import torch

from fedlora.optimizers import Turn
from fedlora.privacy import training
from fedlora.privacy.accounting import Mechanism
from tests.fedlora import lengths
from tests.fedlora.adapters.padded import in_float64
from tests.fedlora.privacy.small import DELTA, ROWS, N, Task, adapter, apart, by_hand, drawn
from tests.fedlora.privacy.test_stacking import agree, noises, private

__all__ = ["in_float64"]  # a fixture
SECRET = b"optimizers"
SHARED = frozenset({"A", "B", "head"})


class Pulled(torch.optim.SGD):
    """SGD with the proximal term added by hand."""

    def __init__(self, parameters, lr, strength):
        super().__init__(parameters, lr=lr)
        self.strength, self.start = strength, [p.detach().clone() for p in parameters]

    def step(self):
        for p, start in zip(self.param_groups[0]["params"], self.start, strict=True):
            p.grad = p.grad + self.strength * (p.detach() - start)
        super().step()


@pytest.mark.parametrize("engine", ["stacked", "hooks"])
def test_the_proximal_term_is_outside_of_clipping_and_division(engine):
    """θ ← θ − lr (clipped mean + μ (θ − θ_sent)): data-independent, so whole, and free."""
    made = adapter()
    before = made.read(made.parts)
    settings = lengths.train_settings(optimizer="sgd", lr=0.2, steps=4, proximal=0.9)
    rows = torch.as_tensor(ROWS)
    training.train(
        Task(), made, made.parts, rows, settings, private(clip=0.3, engine=engine),
        Mechanism(0.0, 0.4, DELTA), SECRET, turn=Turn(shared=SHARED),
    )  # fmt: skip
    moved = {k: t.double() - before[k].double() for k, t in made.read(made.parts).items()}
    steps = drawn(SECRET, 0.4, N, 4)
    assert apart(moved, by_hand(adapter(), steps, lambda p: Pulled(p, 0.2, 0.9), clip=0.3)) < 2e-5
    free = by_hand(adapter(), steps, lambda p: torch.optim.SGD(p, lr=0.2), clip=0.3)
    assert apart(moved, free) > 0.02


@pytest.mark.parametrize(
    "fields",
    [
        {"optimizer": "sgd", "momentum": 0.9},
        {"optimizer": "lora-plus", "weight_decay": 0.1},
        {"optimizer": "lora-fa"},
    ],
)
def test_stacked_clients_end_where_they_would_alone(fields, in_float64):
    """Noise included, at mixed ranks, in epochs of unequal steps, each on its own schedule."""
    made = lengths.adapter("bert", "lora")
    members = lengths.members(made, [9, 4, 14], [1, 4, 2])
    members = [replace(m, turn=Turn(2, 3, SHARED)) for m in members]
    lengths.doubled(made)
    common = {"schedule": "linear", "warmup": 2, "proximal": 0.4, "steps": None}
    settings = lengths.train_settings(**common, **fields)
    made.parts -= settings.freezes
    agree(made, members, noises(0.5), settings, private())
