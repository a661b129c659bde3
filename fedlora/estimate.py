"""Gradient estimates for initialisers: sums over rows, a group of layers at a time, and sketches.

G = sum over rows of dL/dW0, (m, n), taken at the pretrained model: the adapter's own
contribution is zero while it is measured. A two-stage sketch (Halko, Martinsson and Tropp 2011,
arXiv:0909.4061) sends Y = G Omega, (m, k), and then Q^T G, (k, n), in place of G.
"""

from collections.abc import Iterator

import torch

from fedlora.adapters.gradients import gradients
from fedlora.resident import Resident
from fedlora.streams import stream
from fedlora.tensors import Tensors, part_of, select

BATCH = 16  # rows a pass
GROUP = 64 * 2**20  # bytes of gradients held at once


def summed(
    resident: Resident, split: str, client: str, modules: list[str], rows: int, head: Tensors
) -> Tensors:
    """G of each module over `rows` seeded rows of a client's 'train' or the server's 'public'."""
    adapter, task = resident.adapter, resident.task
    silent = {
        k: torch.zeros_like(t)
        for k, t in adapter.initial().items()
        if part_of(k) in {"R", "B", "b"}
    }
    adapter.load({**silent, **select(head, {"head"})})
    encoded = resident.encoded(client, split)
    order = torch.randperm(
        len(encoded), generator=stream(resident.config.run.seed, "gradient", client)
    )
    batches = (task.batch(encoded, chunk.tolist()) for chunk in order[:rows].split(BATCH))
    return gradients(adapter, modules, batches, task.losses)


def groups(shapes: dict[str, tuple[int, int]]) -> Iterator[list[str]]:
    """The modules in groups whose gradients together stay within GROUP bytes."""
    group: list[str] = []
    size = 0
    for module, (m, n) in shapes.items():
        if group and size + 4 * m * n > GROUP:
            yield group
            group, size = [], 0
        group.append(module)
        size += 4 * m * n
    yield group


def test_matrix(seed: int, module: str, n: int, size: int) -> torch.Tensor:
    """Omega (n, size), standard normal, the same on every client and on the server."""
    return torch.randn(n, size, generator=stream(seed, "sketch", module))
