"""Gradient estimates for initialisers: sums over rows, and sketches.

G = sum over rows of dL/dW0, (m, n), taken at the pretrained model: the adapter's own
contribution is zero while it is measured. A two-stage sketch (Halko, Martinsson and Tropp 2011,
arXiv:0909.4061) sends Y = G Omega, (m, k), and then Q^T G, (k, n), in place of G.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fedlora import pieces
from fedlora.adapters.gradients import gradients, summing
from fedlora.device import free
from fedlora.footprint import UNDER_WAY, kept
from fedlora.resident import Resident
from fedlora.streams import stream
from fedlora.tasks.likelihood import under_way
from fedlora.tensors import Tensors, part_of, select

HALF = 0.5  # of the free memory: sums may take as much, and passes half of what is left


def summed(
    resident: Resident, split: str, client: str, modules: Sequence[str], rows: int, head: Tensors
) -> Tensors:
    """G of each module over `rows` seeded rows of a client's 'train' or the server's 'public', on
    the model's device. All modules share each pass over the rows."""
    adapter, task = resident.adapter, resident.task
    silent = {
        k: torch.zeros_like(t)
        for k, t in adapter.initial().items()
        if part_of(k) in {"R", "B", "b"}
    }
    adapter.load({**silent, **select(head, {"head"})})
    encoded = resident.encoded(client, split)
    draw = stream(resident.config.run.seed, "gradient", client)
    order = torch.randperm(len(encoded), generator=draw)[:rows].tolist()
    most, ranks = _most(resident, modules, encoded), resident.node.ranks
    if ranks.sharded:  # all are here, and are to make as many passes
        most = ranks.least(most)
    costs = pieces.costs(adapter.model, most)
    cut = pieces.cut([encoded.length(i) for i in order], costs)
    batches = (task.batch(encoded, [order[i] for i in piece]) for piece in cut)
    return gradients(adapter, modules, batches, task.losses)


def room(resident: Resident) -> int:
    """Bytes that gradients held at once may take."""
    memory = resident.config.simulation.memory
    given = free(resident.adapter.model.device) if memory is None else memory * 1e6
    return int(HALF * given)


def groups(shapes: Mapping[str, tuple[int, int]], most: float) -> Iterator[list[str]]:
    """The modules in groups whose matrices of these shapes together stay within so many bytes."""
    group: list[str] = []
    size = 0
    for module, (m, n) in shapes.items():
        if group and size + 4 * m * n > most:
            yield group
            group, size = [], 0
        group.append(module)
        size += 4 * m * n
    yield group


def test_matrix(seed: int, module: str, n: int, size: int) -> Tensor:
    """Omega (n, size), standard normal, the same on every client and on the server."""
    return torch.randn(n, size, generator=stream(seed, "sketch", module))


def _most(resident: Resident, modules: Sequence[str], encoded: Any) -> int:
    """Padded tokens that one pass has room for, by what it keeps of the longest row."""
    model: Any = resident.adapter.model
    row = max(range(len(encoded)), key=encoded.length)
    batch = resident.task.batch(encoded, [row])
    with summing(resident.adapter, dict.fromkeys(modules, torch.empty(0))):
        own = kept(model, lambda: resident.task.losses(model, batch))
    each = UNDER_WAY * own / pieces.padded(encoded.length(row))
    logits = under_way(model.get_base_model(), pieces.most(model.device))
    return max(1, int((HALF * room(resident) - logits) / each))
