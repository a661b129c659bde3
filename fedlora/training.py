"""Local training: a plain loop over one client's rows, the oracle of `fedlora.stacking`."""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedlora import config, optimizers, parallel, pieces, profile
from fedlora.adapters import Adapter
from fedlora.optimizers import ALONE, Turn
from fedlora.parallel import Ranks
from fedlora.streams import forked, stream
from fedlora.tasks import Task
from fedlora.tensors import select


@dataclass(frozen=True)
class Trained:
    """The mean loss over the steps (before each), their number, and the rows seen."""

    loss: float
    steps: int
    rows: int


def train(
    task: Task,
    adapter: Adapter,
    parts: Collection[str],
    encoded: Any,
    settings: config.Train,
    seed: tuple[Any, ...],
    most: int | None = None,
    turn: Turn = ALONE,
    ranks: Ranks = parallel.ALONE,
) -> Trained:
    """Train the parts in place on a client's rows, with a fresh optimizer.

    Args:
        seed: the run's seed, then the path of this stream; it orders rows and draws dropout.
        most: padded tokens that memory has room for in one pass; None: any number.
        ranks: among which each step's rows are shared out; all train at once, and end alike.
    """
    model, parameters = adapter.model, adapter.trainable(parts)
    updater = fresh(adapter, parts, settings, settings.steps_a_round(len(encoded)), turn)
    total, rows = torch.zeros((), device=parameters[0].device), 0
    steps = 0
    costs = pieces.costs(model, most, settings.micro_batch)
    model.train()
    with forked(*seed, "dropout", *ranks.path):
        for indices in batches(len(encoded), settings, stream(*seed, "rows")):
            updater.zero_grad(set_to_none=True)
            share = shares(task, encoded, indices)
            for part, count in ranks.cut([encoded.length(i) for i in indices], costs):
                with profile.span("forward and backward"):
                    batch = task.batch(encoded, [indices[i] for i in part])
                    own = share[part].to(total, non_blocking=True)
                    loss = (task.losses(model, batch) * own)[:count].sum()
                    loss.backward()
                total += loss.detach()
            with profile.span("optimizer"):
                ranks.sum_gradients(parameters)
                if settings.clip is not None:
                    nn.utils.clip_grad_norm_(parameters, settings.clip)
                updater.step()
            steps += 1
            rows += len(indices)
    model.eval()
    (total,) = ranks.sum([total])
    return Trained(float(total) / steps if steps else math.nan, steps, rows)


def shares(task: Task, encoded: Any, indices: Sequence[int]) -> Tensor:
    """(b,): each row's share in the loss of a step over these rows. They sum to one, or to zero
    where no row counts."""
    counts = task.counts(encoded, indices)
    return counts / counts.sum().clamp(min=1.0)


def batches(rows: int, settings: config.Train, generator: torch.Generator) -> Iterator[list[int]]:
    """Row indices of each step: epochs shuffled one after another, the last short batch kept."""
    per_epoch = math.ceil(rows / settings.batch_size)
    left = settings.steps_a_round(rows)
    while left > 0:
        order: Tensor = torch.randperm(rows, generator=generator)
        for indices in order.split(settings.batch_size)[:left]:
            yield indices.tolist()
        left -= per_epoch


def fresh(
    adapter: Adapter, parts: Collection[str], settings: config.Train, steps: int, turn: Turn
) -> torch.optim.Optimizer:
    """The optimizer of the parts of an adapter as it is loaded, see `fedlora.optimizers`."""
    fa = settings.optimizer == "lora-fa"
    grams = optimizers.inverses(adapter.live(), adapter.scales()) if fa else None
    trained = select(adapter.live(), set(parts) & adapter.parts)
    return optimizers.fresh(trained, settings, steps, turn, grams)
