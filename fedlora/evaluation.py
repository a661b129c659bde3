"""Scores of a model on rows, in passes over rows of like length."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fedlora import parallel, pieces, profile
from fedlora.parallel import Ranks
from fedlora.privacy.steady import passes as alone
from fedlora.tasks import Score, Task


def evaluate(
    task: Task,
    model: Any,
    encoded: Any,
    most: int | None = None,
    steady: bool = False,
    ranks: Ranks = parallel.ALONE,
) -> Score:
    """The model on all rows; its training mode is afterwards what it was.

    Args:
        most: padded tokens that memory has room for in one pass; None: any number.
        steady: whether what is found of a row may depend on that row alone to the bit, see
            `fedlora.privacy.steady`.
        ranks: among which the rows are shared out; all evaluate at once, and find the same.
    """
    found = sums(task, model, encoded, most, steady, ranks=ranks)
    return total(found, len(encoded), ranks)


@profile.timed("evaluate")
@torch.no_grad()  # inference mode would leave a sharded base tensors that nothing can train on
def sums(
    task: Task,
    model: Any,
    encoded: Any,
    most: int | None = None,
    steady: bool = False,
    share: slice = slice(None),
    ranks: Ranks = parallel.ALONE,
) -> Tensor:
    """What each pass of `evaluate` adds to the sums of `score`, (p, 3) float64 on the CPU; of
    the passes that are this `share` of all."""
    rows, costs = range(len(encoded)), pieces.costs(model, most)
    if steady:
        passes = alone(encoded, rows, task.max_length, model.device, ranks)
    else:
        passes = ranks.cut([encoded.length(i) for i in rows], costs)
    found = [torch.zeros(0, 3, dtype=torch.float64, device=model.device)]
    with evaluating(model):
        for piece, count in passes[share]:
            outcome = task.outcomes(model, task.batch(encoded, piece))
            counts = task.counts(encoded, piece).to(model.device, non_blocking=True)
            found.append(weighed(outcome, counts)[:, :count].sum(dim=1)[None])
    return torch.cat(found).cpu()  # read once, at the end


def total(sums: Tensor, rows: int, ranks: Ranks = parallel.ALONE) -> Score:
    """The score of so many rows whose passes, in their order, add `sums` (p, 3): one after another,
    so that it is the same to the bit whoever made which pass."""
    added = torch.zeros(3, dtype=torch.float64)
    for one in sums:
        added += one
    return score(ranks.sum([added])[0], rows)


def weighed(found: Sequence[Tensor], counts: Tensor) -> Tensor:
    """(3, b): of each row what it adds to the sums of `score`. `counts` (b,) is float64."""
    right, loss = (t.double() * counts for t in found)
    return torch.stack([right, loss, counts])


def score(sums: Tensor, rows: int) -> Score:
    """Of the sums (3,) over so many rows: Σ c right, Σ c loss and Σ c, c being what a row counts.
    NaN where nothing counts, and where a loss is none: what such a model is right about is
    chance."""
    right, loss, count = sums.tolist()
    if not count or math.isnan(loss):
        return Score(math.nan, math.nan, rows)
    return Score(right / count, loss / count, rows)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block, and afterwards every module in the mode it had."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
