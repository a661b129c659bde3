"""A first attack: does the model tell whether one odd row was among those it was trained on?

Shapes: rows (40, 7): six tokens, of which class 0 and 1 have nine each, and the label.
"""

import math

import pytest
import torch

from fedlora.config import Train
from fedlora.config.privacy import Privacy
from fedlora.privacy import accounting
from fedlora.privacy.accounting import Mechanism
from fedlora.privacy.entropy import insecure
from fedlora.privacy.training import train
from fedlora.streams import stream
from tests.fedlora.adapters import tiny
from tests.fedlora.privacy.small import Rows, Task

N, RATE, STEPS, SECRETS = 40, 0.25, 12, 3


class Labelled(Task):
    """The last column is the label."""

    def batch(self, encoded, indices):
        rows = encoded[list(indices)]
        return {"input_ids": rows[:, :-1], "labels": rows[:, -1]}


def ordinary():
    draw = stream(0, "membership")
    labels = torch.randint(0, 2, (N, 1), generator=draw)
    words = 1 + 9 * labels + torch.randint(0, 9, (N, 6), generator=draw)
    return torch.cat([words, labels], dim=1).as_subclass(Rows)


CANARY = torch.tensor([[10, 11, 12, 13, 14, 15, 0]])  # the words of class 1, labelled 0


def gap(made, start, epsilon, secret):
    """The canary's loss where it was no row, less that where it was the last."""
    rows, task, delta = ordinary(), Labelled(), 1 / (2 * N)
    private = math.isfinite(epsilon)
    sigma = accounting.noise_multiplier(epsilon, delta, RATE, STEPS) if private else 0.0
    privacy = Privacy(noise_multiplier=1.0, clip=0.3 if private else 1e6, statistics=False)
    losses = []
    for given in (rows, torch.cat([rows[:-1], CANARY])):
        made.load(start)
        settings = Train(lr=0.02, steps=STEPS)
        mechanism = Mechanism(sigma, RATE, delta)
        train(task, made, made.parts, given, settings, privacy, mechanism, secret)
        with torch.no_grad():
            losses.append(float(task.losses(made.model, task.batch(CANARY, [0]))))
    return losses[0] - losses[1]


def test_an_odd_row_is_the_harder_to_find_the_smaller_the_budget():
    """Training on the canary lowers its loss by much without privacy, by less at ε = 8 and by
    hardly anything at ε = 0.5: averaged over secrets, the two trainings of each sharing theirs."""
    made = tiny.adapter("llama", "lora", rank=3, target_modules=["q_proj", "v_proj"])
    start = made.initial()
    found = [
        sum(gap(made, start, epsilon, insecure(4, i)) for i in range(SECRETS)) / SECRETS
        for epsilon in (math.inf, 8.0, 0.5)
    ]
    none, eight, half = found
    assert none > 0.3
    assert eight < none / 2
    assert half < eight / 2
    assert half == pytest.approx(0, abs=0.1)
