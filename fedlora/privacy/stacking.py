"""DP-SGD of many clients in the same passes over the frozen model.

Each client's sample, clipping, noise and budget are those of `fedlora.privacy.training`, from its
own secret; only the passes that give rows' gradients are shared. Every row has a copy of its
client's adapter in any case, so that the copies' gradients are the rows' own.

Shapes: K clients; a pass of b rows, of any of them, each client's beside each other; owner (b);
copies (b, …).
"""

import hashlib
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from torch import nn

from fedlora import config, optimizers, pieces, profile
from fedlora.adapters import Adapter
from fedlora.adapters.stack import Stack, Through
from fedlora.config.privacy import Privacy
from fedlora.privacy.accounting import Mechanism
from fedlora.privacy.training import Private, Updates
from fedlora.stacking import Member, joined
from fedlora.streams import forked
from fedlora.tasks import Task
from fedlora.tensors import Tensors


def train(
    task: Task,
    adapter: Adapter,
    members: Sequence[Member],
    noises: Sequence[tuple[Mechanism, bytes]],
    parts: set[str],
    settings: config.Train,
    privacy: Privacy,
    most: int | None = None,
) -> list[tuple[Tensors, Private]]:
    """One round of DP-SGD on the parts of every member.

    Args:
        noises: each member's mechanism and secret, see `fedlora.privacy.training.train`.
        most: padded tokens that memory has room for in one pass; None: any number.

    Returns:
        Of each member its trained tensors and what the round releases beside them.
    """
    stack = Stack(adapter, [m.tensors for m in members], [m.scale for m in members], parts)
    rows = joined(members, adapter)
    costs = pieces.costs(adapter.model, most, privacy.physical_batch)
    own = [_parameters(stack, k) for k in range(len(members))]
    updates = [
        Updates(_updater(own[k], m, settings), len(m.encoded), settings, privacy, *noises[k])
        for k, m in enumerate(members)
    ]
    secrets = hashlib.sha256(b"".join(secret for _, secret in noises)).digest()
    adapter.model.train()
    with forked(int.from_bytes(secrets), "dropout"), stack.passes() as through:
        while batch := {k: drawn for k, u in enumerate(updates) if (drawn := u.draw()) is not None}:
            passes = list(rows.cut(batch, costs))
            last = {k: i for i, (owner, _) in enumerate(passes) for k in owner}
            for i, (owner, indices) in enumerate(passes):
                grads = _gradients(task, stack, through, rows.encoded, owner, indices)
                for k, of_k in _slices(owner).items():
                    for name, p in own[k].items():
                        p.grad_sample = grads[name][of_k, *stack.own(k, name)]
                    updates[k].take(last[k] == i)
            for k, drawn in batch.items():
                if not drawn:
                    updates[k].take_none()
    adapter.model.eval()
    return [(stack.client(k), updates[k].told()) for k in range(len(members))]


def _slices(owner: Sequence[int]) -> dict[int, slice]:
    """{client: where its rows are} of a pass, in which they lie beside each other."""
    found: dict[int, slice] = {}
    start = 0
    for k, rows in groupby(owner):
        end = start + len(list(rows))
        found[k] = slice(start, end)
        start = end
    return found


def _parameters(stack: Stack, k: int) -> dict[str, Any]:
    """A client's tensors in the stacks: what moves them moves the stack."""
    return {
        name: nn.Parameter(t.detach()[k][stack.own(k, name)]) for name, t in stack.trained.items()
    }


def _updater(own: dict[str, Any], member: Member, settings: config.Train) -> torch.optim.Optimizer:
    fa = settings.optimizer == "lora-fa"
    grams = optimizers.inverses(member.tensors, member.scale) if fa else None
    steps = settings.steps_a_round(len(member.encoded))
    return optimizers.fresh({**own}, settings, steps, member.turn, grams)


@profile.timed("forward and backward")
def _gradients(
    task: Task,
    stack: Stack,
    through: Through,
    encoded: object,
    owner: list[int],
    indices: list[int],
) -> Tensors:
    """(b, …): the gradient of each row's own loss, of every trained part."""
    copies = {k: t.detach() for k, t in stack.copies(owner).items()}
    trained = {k: c.requires_grad_() for k, c in copies.items() if stack.tensors[k].requires_grad}
    with through(owner, copies):
        task.losses(stack.adapter.model, task.batch(encoded, indices)).sum().backward()
    return {k: torch.zeros_like(c) if c.grad is None else c.grad for k, c in trained.items()}
