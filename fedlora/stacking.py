"""Local training and evaluation of many clients in the same passes over the frozen model.

Each client's rows, steps, clipping and optimizer are those of `fedlora.training`, and what comes
out equals it to rounding (dropout apart, whose masks are other draws). A step takes every client
that is not done: the rows that they drew are cut into pieces of like length, whosever they are, and

    loss = Σ_k Σ_{i of k} c_i / C_k loss_i      with C_k = Σ_{i of k} c_i over the rows of client k,

so that each client's copy gets the gradient of its own mean loss; c_i is what a row counts, see
`fedlora.tasks.Task.counts`. A client's tensors are taken out
at its last step, since AdamW's moments would go on moving them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from fedlora import config, optimizers, pieces, profile
from fedlora.adapters import Adapter
from fedlora.adapters.stack import Stack, laid
from fedlora.evaluation import evaluating, score, weighed
from fedlora.optimizers import ALONE, Turn
from fedlora.streams import forked, stream
from fedlora.tasks import Score, Task
from fedlora.tensors import Tensors
from fedlora.training import Trained, batches, shares

TINY = 1e-6  # as in torch.nn.utils.clip_grad_norm_


@dataclass(frozen=True)
class Member:
    """One client of a pass: its whole adapter, its s, its rows as the task encoded them, the run's
    seed with the path of this stream, which orders its rows, and the round that it is in."""

    tensors: Tensors
    scale: float
    encoded: Any
    seed: tuple[Any, ...] = (0,)
    turn: Turn = ALONE


def train(
    task: Task,
    adapter: Adapter,
    members: Sequence[Member],
    parts: set[str],
    settings: config.Train,
    most: int | None = None,
) -> list[tuple[Tensors, Trained]]:
    """Train the parts of every member, each with a fresh optimizer.

    Args:
        members: at least one; their adapters are `alike`, and their turns the same, as are their
            steps where the schedule decays. Of their seeds the first element, the run's, is the
            same.
        most: padded tokens that memory has room for in one pass; None: any number.

    Returns:
        Of each member its trained tensors and what `fedlora.training.train` tells.
    """
    stack = Stack(adapter, [m.tensors for m in members], [m.scale for m in members], parts)
    rows = joined(members, adapter)
    steps = [settings.steps_a_round(len(m.encoded)) for m in members]
    drawn = [batches(len(m.encoded), settings, stream(*m.seed, "rows")) for m in members]
    assert len({m.turn for m in members}) == 1 and (not settings.decays or len(set(steps)) == 1)
    updater = optimizers.fresh(
        stack.trained,
        settings,
        steps[0],
        members[0].turn,
        stack.inverses() if settings.optimizer == "lora-fa" else None,
        stacked=True,
    )
    costs = pieces.costs(adapter.model, most, settings.micro_batch)
    found: list[tuple[list[int], Tensor]] = []  # each pass's owners, and its rows' shares of losses
    done: dict[int, Tensors] = {}
    seen = [0] * len(members)
    adapter.model.train()
    dropout = forked(members[0].seed[0], *[x for m in members for x in m.seed[1:]], "dropout")
    with dropout, stack.passes() as through:
        for step in range(max(steps)):
            batch = {k: next(drawn[k]) for k in range(len(members)) if step < steps[k]}
            updater.zero_grad(set_to_none=True)
            share_of = rows.shares(task, batch)
            for owner, indices in rows.cut(batch, costs):
                with profile.span("forward and backward"), through(owner):
                    losses = task.losses(adapter.model, task.batch(rows.encoded, indices))
                    share = torch.tensor([share_of[i] for i in indices], dtype=torch.float32)
                    weighed = losses * share.to(losses.device, non_blocking=True)
                    weighed.sum().backward()
                found.append((owner, weighed.detach()))
            with profile.span("optimizer"):
                if settings.clip is not None:
                    _clip(stack.leaves, settings.clip)
                updater.step()
            for k, own in batch.items():
                seen[k] += len(own)
                if step + 1 == steps[k]:
                    done[k] = stack.client(k)
    adapter.model.eval()
    means = (_totals(found, len(members)) / torch.tensor(steps)).tolist()
    return [(done[k], Trained(means[k], steps[k], seen[k])) for k in range(len(members))]


@profile.timed("evaluate")
def evaluate(
    task: Task, adapter: Adapter, members: Sequence[Member], most: int | None = None
) -> list[Score]:
    """Each member's own model on its rows; the arguments are those of `train`."""
    stack = Stack(adapter, [m.tensors for m in members], [m.scale for m in members])
    rows = joined(members, adapter)
    costs = pieces.costs(adapter.model, most)
    none = torch.zeros(3, 0, dtype=torch.float64, device=rows.device)
    found: list[tuple[list[int], Tensor]] = [([], none)]  # each pass's owners, what its rows add
    everything = {k: list(range(len(m.encoded))) for k, m in enumerate(members)}
    with torch.inference_mode(), evaluating(adapter.model), stack.passes() as through:
        for owner, indices in rows.cut(everything, costs):
            with through(owner):
                outcomes = task.outcomes(adapter.model, task.batch(rows.encoded, indices))
            counts = task.counts(rows.encoded, indices).double()
            found.append((owner, weighed(outcomes, counts.to(rows.device, non_blocking=True))))
    sums = _totals(found, len(members))
    return [score(sums[:, k], len(m.encoded)) for k, m in enumerate(members)]


@dataclass(frozen=True)
class Rows:
    """The rows of several clients as one table: client k's begin at `starts[k]`."""

    encoded: Any
    starts: list[int]
    device: torch.device

    def shares(self, task: Task, batch: dict[int, list[int]]) -> dict[int, float]:
        """{row: its share in its own client's loss} of a step over these rows, {client: its own
        indices}."""
        found: dict[int, float] = {}
        for k, own in batch.items():
            rows = [self.starts[k] + i for i in own]
            found |= zip(rows, shares(task, self.encoded, rows).tolist(), strict=True)
        return found

    def cut(
        self, batch: dict[int, list[int]], costs: pieces.Costs
    ) -> Iterator[tuple[list[int], list[int]]]:
        """(owner (b), rows (b)) of each pass that takes these rows, {client: its own indices}, as
        `laid`."""
        owners = [k for k, own in batch.items() for _ in own]
        rows = [self.starts[k] + i for k, own in batch.items() for i in own]
        for piece in pieces.cut([self.encoded.length(row) for row in rows], costs):
            order = [piece[i] for i in laid([owners[i] for i in piece])]
            yield [owners[i] for i in order], [rows[i] for i in order]


def joined(members: Sequence[Member], adapter: Adapter) -> Rows:
    """All members' rows, in their order."""
    encoded = [m.encoded for m in members]
    starts = list(accumulate((len(rows) for rows in encoded), initial=0))
    return Rows(type(encoded[0]).joined(encoded), starts, adapter.model.device)


def _totals(found: Sequence[tuple[list[int], Tensor]], clients: int) -> Tensor:
    """(…, K): what rows (…, b) of all passes add up to, by owner; on the CPU, waited for once."""
    owner = torch.tensor([k for owners, _ in found for k in owners])
    each = torch.cat([t for _, t in found], -1).cpu()
    return each.new_zeros(*each.shape[:-1], clients).index_add_(-1, owner, each)


def _clip(leaves: Sequence[Tensor], most: float) -> None:
    """Each client's gradient, over all its parts, cut to an L2 norm of `most`; a client whose norm
    is not finite keeps what it has, as in the plain loop, and hurts nobody else."""
    grads = [t.grad for t in leaves if t.grad is not None]
    if not grads:
        return
    norms = torch.stack([g.flatten(1).norm(dim=1) for g in grads]).norm(dim=0)  # (K,)
    factors = (most / (norms + TINY)).clamp(max=1.0)
    for g in grads:
        g.mul_(factors.view(-1, *[1] * (g.ndim - 1)))
