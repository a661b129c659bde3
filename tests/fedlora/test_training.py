"""Local training against the same loop written out by hand.

Shapes: rows (n, 3), one label each; the model is logistic regression, w (3,).
"""

import math
from itertools import chain, pairwise

import pytest
import torch
from torch import nn

from fedlora.config import Train
from fedlora.streams import forked, stream
from fedlora.training import batches, train

N = 23
ROWS = torch.randn(N, 3, generator=stream(0, "rows"))
LABELS = (ROWS @ torch.tensor([1.0, -2.0, 0.5]) > 0).float()


class Task:
    """As much of a task as training needs; remembers the rows of each step."""

    def __init__(self):
        self.seen = []

    def batch(self, encoded, indices):
        self.seen.append(list(indices))
        return encoded[list(indices)], LABELS[list(indices)]

    def counts(self, encoded, indices):
        return torch.ones(len(indices), dtype=torch.float64)

    def losses(self, model, batch):
        rows, labels = batch
        logits = model(rows)[:, 0]
        return nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")


def model(dropout=0.0):
    with forked(0):
        made = nn.Sequential(nn.Dropout(dropout), nn.Linear(3, 1, bias=False))
    nn.init.zeros_(made[1].weight)
    return made.eval()


class Rows:
    """The rows, all of one length."""

    def __len__(self):
        return N

    def length(self, i):
        return 3

    def __getitem__(self, indices):
        return ROWS[indices]


class Adapter:
    """As much of an adapter as training needs: these layers of a model are its head."""

    parts = frozenset({"head"})

    def __init__(self, made, *chosen):
        self.model = made
        layers = {f"head.{name}": made.get_submodule(name) for name in chosen or ["1"]}
        self.own = {f"{k}.{n}": p for k, m in layers.items() for n, p in m.named_parameters()}

    def live(self):
        return self.own

    def trainable(self, parts):
        self.model.requires_grad_(False)
        return [p.requires_grad_() for p in self.own.values()]


def fit(settings, seed=(0, "client", 1), dropout=0.0):
    task, made = Task(), model(dropout)
    found = train(task, Adapter(made), {"head"}, Rows(), settings, seed)
    return task, made, found


def test_sgd_is_gradient_descent():
    """w ← w − lr · clip(∇ mean loss) over the batches it was given, in float64 by hand; the loss
    is the mean of those before each step."""
    settings = Train(optimizer="sgd", lr=0.5, batch_size=8, steps=7, clip=0.3)
    task, made, found = fit(settings)
    w, losses = torch.zeros(3, dtype=torch.float64), []
    for indices in task.seen:
        x, y = ROWS[indices].double(), LABELS[indices].double()
        p = torch.sigmoid(x @ w)
        losses.append(float(-(y * p.log() + (1 - y) * (1 - p).log()).mean()))
        g = x.T @ (p - y) / len(indices)
        w -= 0.5 * g * min(1.0, 0.3 / float(g.norm()))
    torch.testing.assert_close(made[1].weight[0].detach().double(), w, rtol=0, atol=1e-5)
    assert found.loss == pytest.approx(sum(losses) / 7, abs=1e-6)
    assert (found.steps, found.rows) == (7, sum(map(len, task.seen)))
    assert not made.training


@pytest.mark.parametrize(
    ("steps", "epochs", "size", "sizes"),
    [
        (None, 1, 8, [8, 8, 7]),
        (None, 2, 8, [8, 8, 7, 8, 8, 7]),
        (5, 1, 8, [8, 8, 7, 8, 8]),
        (2, 9, 8, [8, 8]),
        (3, 1, 100, [23, 23, 23]),
        (None, 1, 1, [1] * 23),
    ],
)
def test_rows_are_passed_over_again_and_again(steps, epochs, size, sizes):
    """Each pass has every row once, in an order of its own, the short batch included; steps, where
    given, say how many, else epochs do."""
    settings = Train(steps=steps, epochs=epochs, batch_size=size)
    found = list(batches(N, settings, stream(0, "x")))
    assert [len(b) for b in found] == sizes
    per = math.ceil(N / size)
    passes = [list(chain(*found[i : i + per])) for i in range(0, len(found), per)]
    for one in passes:
        assert len(set(one)) == len(one)
        if len(one) == N:
            assert sorted(one) == list(range(N))
    assert all(a != b for a, b in pairwise(passes))


def test_order_and_dropout_come_from_the_path_alone(global_rng_untouched):
    """The same path trains to the same bits; another client, round or seed otherwise."""
    settings = Train(optimizer="sgd", lr=0.1, steps=6, batch_size=4)

    def weights(*seed):
        return fit(settings, seed, dropout=0.5)[1][1].weight

    first = weights(0, "train", "a", 1)
    assert torch.equal(first, weights(0, "train", "a", 1))
    for other in ((1, "train", "a", 1), (0, "train", "b", 1), (0, "train", "a", 2)):
        assert not torch.equal(first, weights(*other))


def test_the_optimizer_is_made_afresh():
    """AdamW has no memory of the round before: its first step is lr in every coordinate."""
    settings = Train(optimizer="adamw", lr=0.01, steps=1, batch_size=N)
    task, made, _ = fit(settings)
    for _ in range(2):
        before = made[1].weight.detach().clone()
        train(task, Adapter(made), {"head"}, Rows(), settings, (0,))
        step = (made[1].weight.detach() - before).abs()
        torch.testing.assert_close(step, torch.full((1, 3), 0.01), rtol=1e-3, atol=0)


def test_only_the_given_parameters_move():
    """Others keep their bits, weight decay or not."""
    made = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    before = [p.detach().clone() for p in made.parameters()]
    settings = Train(lr=0.1, steps=3, weight_decay=0.1)
    train(Task(), Adapter(made, "1"), {"head"}, Rows(), settings, (0,))
    moved = [not torch.equal(a, b) for a, b in zip(before, made.parameters(), strict=True)]
    assert moved == [False, False, True, True]
