"""Rows of tokens and adapters on tiny models for private training, and DP-SGD the slow way.

Shapes: rows (n, 7) of token ids; their sum modulo three is a row's label.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedlora.adapters import Adapter
from fedlora.config import Train
from fedlora.config.privacy import Privacy
from fedlora.privacy.accounting import Mechanism
from fedlora.privacy.entropy import uniforms
from fedlora.privacy.training import Private, train
from fedlora.streams import stream
from fedlora.tensors import Tensors
from tests.fedlora.adapters import tiny

N = 12


class Rows(Tensor):
    """Rows as training has them, all of one length."""

    def length(self, i: int) -> int:
        return int(self.shape[1])


ROWS = torch.randint(1, 29, (N, 7), generator=stream(0, "private")).as_subclass(Rows)
POISON = 29  # a row that starts with it has no finite loss
DELTA = 1e-3


class Task:
    """As much of a task as private training needs; `passes` are the rows of each batch."""

    def __init__(self) -> None:
        self.passes: list[int] = []

    def batch(self, encoded: Tensor, indices: list[int]) -> dict[str, Tensor]:
        ids = encoded[list(indices)]
        self.passes.append(len(ids))
        return {"input_ids": ids, "labels": ids.sum(1) % 3}

    def losses(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        ids, labels = batch["input_ids"], batch["labels"]
        each = F.cross_entropy(model(input_ids=ids).logits, labels, reduction="none")
        return each * torch.where(ids[:, 0] == POISON, math.nan, 1.0)


def adapter(architecture: str = "bert", kind: str = "lora", still: bool = True) -> Adapter:
    """Rank 3 on every linear layer, no part zero; `still`: without any dropout."""
    made = tiny.adapter(architecture, kind, rank=3, dropout=0.0 if still else 0.1)
    made.load(tiny.drawn(made))
    for module in made.model.modules():
        if still and isinstance(module, nn.Dropout):
            module.p = 0.0
    return made


def fit(
    made: Adapter,
    secret: bytes,
    *,
    sigma: float = 0.0,
    q: float = 0.4,
    rows: Tensor = ROWS,
    parts: set[str] | None = None,
    statistics: bool = False,
    clip: float = 1e6,
    engine: str | None = None,
    physical_batch: int = 64,
    most: int | None = None,
    task: Task | None = None,
    **settings: object,
) -> tuple[Tensors, Private]:
    """How far each trained tensor moved in a round of the real code, and what it told."""
    parts = parts or made.parts
    before = made.read(parts)
    chosen = Train(**{"optimizer": "sgd", "lr": 0.1, "steps": 4, **settings})
    privacy = Privacy(
        noise_multiplier=sigma or 1.0,  # what counts is the mechanism's
        statistics=statistics,
        clip=clip,
        engine=engine,
        physical_batch=physical_batch,
    )
    mechanism = Mechanism(sigma, q, DELTA)
    told = train(task or Task(), made, parts, rows, chosen, privacy, mechanism, secret, most)
    return {k: t.double() - before[k].double() for k, t in made.read(parts).items()}, told


def drawn(secret: bytes, q: float, n: int, steps: int) -> list[list[int]]:
    """The rows of each step: each with chance q, whatever the others."""
    draws = [uniforms(n, secret, "rows", step).tolist() for step in range(steps)]
    return [[i for i, u in enumerate(us) if u <= q] for us in draws]


def gradient(made: Adapter, row: Tensor) -> list[Tensor]:
    """∇ loss of one row alone, by plain autograd."""
    task, trained = Task(), [p for p in made.model.parameters() if p.requires_grad]
    loss = task.losses(made.model, task.batch(row[None], [0])).sum()
    return list(torch.autograd.grad(loss, trained))


def norm(gradients: list[Tensor]) -> float:
    return math.sqrt(sum(float(g.double().square().sum()) for g in gradients))


def by_hand(
    made: Adapter,
    steps: list[list[int]],
    update: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
    *,
    q: float = 0.4,
    rows: Tensor = ROWS,
    clip: float = math.inf,
) -> Tensors:
    """How far DP-SGD without noise moves, one row at a time:
    θ ← update(θ, Σ min(1, C/‖g_i‖) g_i / (q n)) over the rows of each of `steps`."""
    before = made.read(made.parts)
    made.trainable(made.parts)
    made.model.eval()
    trained = [p for p in made.model.parameters() if p.requires_grad]
    optimizer = update(trained)
    for step in steps:
        total = [torch.zeros_like(p) for p in trained]
        for i in step:
            g = gradient(made, rows[i])
            share = min(1.0, clip / norm(g))
            total = [t + share * x for t, x in zip(total, g, strict=True)]
        for p, t in zip(trained, total, strict=True):
            p.grad = t / (q * len(rows))
        optimizer.step()
    return {k: t.double() - before[k].double() for k, t in made.read(made.parts).items()}


def apart(one: Tensors, other: Tensors) -> float:
    """The distance of two movements over the length of the second."""
    assert one.keys() == other.keys()
    difference = norm([one[k] - other[k] for k in one])
    return difference / norm(list(other.values()))
