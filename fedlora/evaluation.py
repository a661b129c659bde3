"""Scores of a model on rows, in passes over rows of like length."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fedlora import pieces, profile
from fedlora.tasks import Score, Task


@profile.timed("evaluate")
@torch.inference_mode()
def evaluate(task: Task, model: Any, encoded: Any, most: int | None = None) -> Score:
    """The model on all rows; its training mode is afterwards what it was.

    Args:
        most: padded tokens that memory has room for in one pass; None: any number.
    """
    sums = torch.zeros(2, dtype=torch.float64)
    costs = pieces.costs(model.device, most)
    with evaluating(model):
        for piece in pieces.cut([encoded.length(i) for i in range(len(encoded))], costs):
            found = task.outcomes(model, task.batch(encoded, piece))
            sums += torch.stack(found).double().sum(dim=1).cpu()
    return score(sums, len(encoded))


def score(sums: Tensor, rows: int) -> Score:
    """Of the sums (2,) over so many rows: of those that are right, and of losses."""
    right, loss = sums.tolist()
    return Score(right / rows, loss / rows, rows) if rows else Score(math.nan, math.nan, 0)


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
