"""One client's passes on several devices at once: what comes of them are sums over rows.

Each of R ranks is a process with a device of its own, and all hold the same adapter and rows. A
step's rows are dealt out, every rank makes passes over its own, and

    g = g_0 + g_1 + … + g_{R-1}      added in this order on every rank, so to the same bits

is the plain loop's gradient, to rounding. From it all ranks take the same step. Each device has the
whole base ("ddp") or a share of every block's, which is brought together while the block is at work
("fsdp", see `fedlora.adapters.sharded`). For the latter all make equally many passes: a rank that
has no rows left makes one of which nothing counts.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fedlora import pieces
from fedlora.pieces import Costs

Mode = Literal["ddp", "fsdp"]
Pass = tuple[list[int], int]  # the rows of a pass, and how many of them count: the first ones

LONGEST = timedelta(hours=1)  # that a rank waits for the others: each loads the base
SLICE = 2**24  # numbers that are gathered at once, of each rank


@dataclass(frozen=True)
class Ranks:
    """One rank of `size`, in a process that has joined the others by torch.distributed."""

    rank: int = 0
    size: int = 1
    mode: Mode = "ddp"
    device: str = "cpu"  # by which its kind of exchange is made

    @property
    def sharded(self) -> bool:
        """Whether no device has the whole base."""
        return self.size > 1 and self.mode == "fsdp"

    @property
    def path(self) -> tuple[int, ...]:
        """The end of a stream's path, where no two ranks are to draw the same."""
        return (self.rank,) if self.rank else ()

    def cut(self, lengths: Sequence[int], costs: Costs) -> list[Pass]:
        """This rank's passes over rows of these lengths; each rank has rows of all lengths."""
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        hands = [order[rank :: self.size] for rank in range(self.size)]
        return self.even([_cut(hand, lengths, costs) for hand in hands])

    def by_number(self, rows: Sequence[int]) -> list[list[int]]:
        """Each rank's rows, where a row's rank may depend on no other row."""
        return [[i for i in rows if i % self.size == rank] for rank in range(self.size)]

    def even(self, passes: Sequence[Sequence[Pass]]) -> list[Pass]:
        """Of all ranks' passes this one's, and as many that count nothing as it has fewer than the
        busiest: it makes the shortest again."""
        most = max(map(len, passes))
        own = passes[self.rank]
        if len(own) == most:
            return [*own]
        again = min((rows for some in passes for rows, _ in some), key=len)
        return [*own, *[(again, 0)] * (most - len(own))]

    def sum(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Of each of these, of one dtype and device, its sum over all ranks."""
        if self.size == 1:
            return [*tensors]
        flat = torch.cat([t.detach().reshape(-1) for t in tensors]).to(self.device)
        for part in flat.split(SLICE):
            each = [torch.empty_like(part) for _ in range(self.size)]
            dist.all_gather(each, part)
            for other in each[1:]:
                each[0] += other
            part.copy_(each[0])
        sums = flat.to(tensors[0].device).split([t.numel() for t in tensors])
        return [s.view(t.shape) for s, t in zip(sums, tensors, strict=True)]

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Every gradient becomes its sum over all ranks; there is none where no rank has one."""
        if self.size == 1:
            return
        found = [p.grad is not None for p in parameters]
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        *sums, there = self.sum([*grads, torch.tensor(found).to(grads[0])])
        for p, total, count in zip(parameters, sums, there.tolist(), strict=True):
            p.grad = total if count else None

    def least(self, number: int) -> int:
        """Of the numbers that ranks have, the least."""
        if self.size == 1:
            return number
        found = torch.tensor(number, device=self.device)
        dist.all_reduce(found, dist.ReduceOp.MIN)
        return int(found)

    @contextmanager
    def by_turns(self) -> Iterator[None]:
        """One rank after another is inside the block where the base is sharded: each has all of it
        in the host's memory for a while."""
        before, after = (self.rank, self.size - self.rank) if self.sharded else (0, 0)
        for _ in range(before):
            self.sum([torch.zeros(1)])
        try:
            yield
        finally:
            for _ in range(after):
                self.sum([torch.zeros(1)])


ALONE = Ranks()  # all rows are its own, and its sums are the sums


def join(rank: int, size: int, device: str, store: str) -> None:
    """Make this process a rank. `store` is a file that does not exist, by which they meet."""
    where = torch.device(device)
    if where.type == "cuda":
        torch.cuda.set_device(where)
    dist.init_process_group(
        "nccl" if where.type == "cuda" else "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=size,
        timeout=LONGEST,
        device_id=where if where.type == "cuda" else None,
    )


def _cut(hand: Sequence[int], lengths: Sequence[int], costs: Costs) -> list[Pass]:
    cut = pieces.cut([lengths[i] for i in hand], costs)
    return [([hand[i] for i in piece], len(piece)) for piece in cut]
