"""The adapters of many clients on one frozen model, whatever their ranks.

Shapes, for K clients and a pass of b rows, of any of them in any number:

    a part (…)      its stack (K, …)      owner (b) says whose a row is, as an index into the K
    copies = stack[owner] (b, …)          scales (K,), each client's s

Where clients have equally many rows, the stacks go in as they are; else clients with equally many
go together (`laid`), and no client has more than one copy in a pass. Of different ranks, A (r_k, n)
and B (m, r_k) are filled up with zeros to the largest r: the gradient of a zero row of A has the
zero column of B as a factor, and the other way about, so they stay zero under SGD and under AdamW.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from fedlora import profile
from fedlora.adapters.adapter import Adapter
from fedlora.adapters.stacked import stacked
from fedlora.optimizers import inverses
from fedlora.tensors import RESIDUAL, Tensors, module_of, part_of

# (owner, copies) of a pass: inside, the model takes a batch of b rows and runs the i-th through the
# adapter of client `owner[i]`; gradients reach the stacks. Where copies (b, …) of every stack are
# given, each row goes through its own, and gradients reach these.
Through = Callable[..., AbstractContextManager[None]]

RANKED = {"A": {0}, "B": {1}, "R": {0, 1}}  # the axes of a part that are as long as the rank


class Stack:
    """The adapters of K clients that are `alike`, on one model.

    Attributes:
        tensors: name -> (K, …), of the parts that are trained, which require gradients, and of
            those that differ. What all have in common is loaded into the adapter.
        scales: (K,), or None where they are the same.
    """

    @profile.timed("load")
    def __init__(
        self,
        adapter: Adapter,
        clients: Sequence[Tensors],
        scales: Sequence[float],
        trained: Collection[str] = (),
    ) -> None:
        """
        Args:
            clients: each client's whole adapter.
            trained: the parts that are to be trained.
        """
        self.adapter, self.clients, self._each = adapter, clients, scales
        ranks = _ranks(clients)
        filled = [_filled(tensors, ranks) for tensors in clients]
        adapter.load(filled[0], scales[0])
        adapter.trainable(set())
        live = {k: t for k, t in adapter.live().items() if module_of(k) != "vera"}
        apart = len(set(scales)) > 1
        self.scales = (
            torch.tensor(scales, dtype=torch.float64).to(next(iter(live.values())))
            if apart
            else None
        )
        self.tensors: Tensors = {}
        for name, like in live.items():
            own = [tensors[name] for tensors in filled]
            if part_of(name) in trained:
                self.tensors[name] = torch.stack(own).to(like).requires_grad_()
            elif apart or any(not torch.equal(own[0], t) for t in own[1:]):
                self.tensors[name] = torch.stack(own).to(like)

    @property
    def trained(self) -> Tensors:
        """The stacks that are trained, by name."""
        return {name: t for name, t in self.tensors.items() if t.requires_grad}

    @property
    def leaves(self) -> list[Tensor]:
        return list(self.trained.values())

    def inverses(self) -> Tensors:
        """(K, r, r) of every B, see `fedlora.optimizers`: each client's at its own rank, zero
        beyond."""
        own = [inverses(c, s) for c, s in zip(self.clients, self._each, strict=True)]
        ranks = _ranks(self.clients)
        return {
            name: torch.stack([_at(grams[name], "R", ranks[module_of(name)]) for grams in own])
            for name in own[0]
        }

    @contextmanager
    def passes(self) -> Iterator["Through"]:
        """Inside, the model goes through the clients' adapters, in the passes entered by what this
        yields."""
        if not self.tensors:
            yield lambda *_: nullcontext()
            return
        with stacked(self.adapter, self.tensors) as enter:

            def through(
                owner: Sequence[int], copies: Tensors | None = None
            ) -> AbstractContextManager[None]:
                if copies is not None:
                    return enter(copies, [1] * len(owner), self._scales(owner))
                runs = [(k, len(list(rows))) for k, rows in groupby(owner)]
                own = [k for k, _ in runs]
                return enter(self.copies(own), [rows for _, rows in runs], self._scales(own))

            yield through

    def copies(self, owner: Sequence[int]) -> Tensors:
        """A copy of every stack for each owner, (b, …); the stacks themselves where these are all
        clients in their order."""
        if self._all(owner):
            return self.tensors
        index = self._index(owner)
        return {name: t.index_select(0, index) for name, t in self.tensors.items()}

    def _scales(self, owner: Sequence[int]) -> Tensor | None:
        if self.scales is None or self._all(owner):
            return self.scales
        return self.scales.index_select(0, self._index(owner))

    def _all(self, owner: Sequence[int]) -> bool:
        return list(owner) == list(range(len(self.clients)))

    def _index(self, owner: Sequence[int]) -> Tensor:
        # Not to be waited for: the device has passes under way.
        return torch.tensor(owner).to(self.adapter.model.device, non_blocking=True)

    def client(self, k: int) -> Tensors:
        """A client's trained tensors as they are now, at its own rank: detached clones on the
        CPU, as of everything that leaves an adapter."""
        trained = {name: t.detach()[k][self.own(k, name)] for name, t in self.trained.items()}
        return {name: t.to("cpu", copy=True) for name, t in trained.items()}

    def own(self, k: int, name: str) -> tuple[slice, ...]:
        """What client `k` has of a tensor, (…) as in its stack, at its own rank."""
        return tuple(slice(n) for n in self.clients[k][name].shape)


def laid(owners: Sequence[int]) -> list[int]:
    """Rows, by index, in an order that keeps together each client's rows, and clients with equally
    many; otherwise theirs."""
    count = Counter(owners)
    return sorted(range(len(owners)), key=lambda i: (count[owners[i]], owners[i]))


def alike(clients: Sequence[Tensors]) -> list[list[int]]:
    """The clients, by index, whose adapters can be in one stack: those of the same residual."""
    groups: list[list[int]] = []
    for i, tensors in enumerate(clients):
        for group in groups:
            if _same_residual(clients[group[0]], tensors):
                group.append(i)
                break
        else:
            groups.append([i])
    return groups


def _same_residual(one: Tensors, other: Tensors) -> bool:
    """VeRA's projections included, which the model shares too."""
    frozen = [{k: t for k, t in x.items() if _shared(k)} for x in (one, other)]
    return frozen[0].keys() == frozen[1].keys() and all(
        t.shape == frozen[1][k].shape and torch.equal(t, frozen[1][k]) for k, t in frozen[0].items()
    )


def _shared(name: str) -> bool:
    return part_of(name) in RESIDUAL or module_of(name) == "vera"


def _ranks(clients: Sequence[Tensors]) -> dict[str, int]:
    """The largest rank of each layer that has one."""
    found: dict[str, int] = {}
    for tensors in clients:
        for name, tensor in tensors.items():
            if part_of(name) == "A":
                found[module_of(name)] = max(found.get(module_of(name), 0), len(tensor))
    return found


def _filled(tensors: Tensors, ranks: dict[str, int]) -> Tensors:
    """The tensors at these ranks, zeros behind what is there."""
    return {
        name: _at(t, part_of(name), ranks.get(module_of(name), 0)) for name, t in tensors.items()
    }


def _at(tensor: Tensor, part: str, rank: int) -> Tensor:
    axes = RANKED.get(part, set())
    missing = [rank - n if axis in axes else 0 for axis, n in enumerate(tensor.shape)]
    # F.pad counts from the last axis: (before, after) of each.
    return F.pad(tensor, [x for m in reversed(missing) for x in (0, m)]) if any(missing) else tensor
