"""The contract acted out, without models or wires: clients copy what they are sent, "train" by
adding noise to the trained parts, and keep what stays with them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from fedlora import guard
from fedlora.errors import MethodError, UserError
from fedlora.guard import Changes, called, changes, finite, placed, trains, uploaded, wrote
from fedlora.mean import Mean
from fedlora.shapes import fitting
from fedlora.strategy import Client, Round, Strategy, Update, is_linear, merge, stays
from fedlora.streams import stream
from fedlora.tensors import RESIDUAL, Tensors, nbytes, part_of, select
from fedlora.testing.base import FakeBase
from fedlora.testing.holding import alike
from fedlora.testing.truth import deltas
from fedlora.views import difference, manifest

EVERYBODY = (0, 1, 2, 3)


@dataclass(frozen=True)
class Bytes:
    """Bytes of tensors that one client's round sent up, and down beyond what it held."""

    up: int
    down: int


class Federation:
    """Server and clients of one run; everything that happened last is kept for inspection.

    A method's hooks are called as a run calls them, through `fedlora.guard`: mistakes raise
    MethodError. Beyond that what a hook was given is compared with copies.

    Attributes:
        clients: `client-0` to `client-3` (as many as `ranks`) with 10, 17, 24, … examples. A rank
            of 0 leaves it to the method, as a node's does.
        state, before: the server's, after `begin` or the last `step`, and before that.
        updates: of the last `step`, in the clients' order.
        kept: by client id, the parts that stay there.
        bytes: by client id, of its last round.
    """

    def __init__(
        self,
        strategy: Strategy,
        kind: str | None = None,
        *,
        ranks: Sequence[int] = (0, 0, 0, 0),
        wire: torch.dtype = torch.float32,
        base: FakeBase | None = None,
    ) -> None:
        self.strategy, self.wire = strategy, wire
        self.kind = kind or strategy.adapter
        self.base = base or FakeBase(self.kind)
        self.clients = [self._joined(i, own) for i, own in enumerate(ranks)]
        initial = self.base.initial()
        begun = called(strategy, "begin", self.base)
        self.state = merge({}, changes(strategy, "begin", begun, initial))
        # An adapter as PEFT makes it, which is without a residual.
        self._adapter = {k: t for k, t in initial.items() if part_of(k) not in RESIDUAL}
        self.before = self.state
        self.number = 0
        self.updates: list[Update] = []
        self.kept: dict[str, Tensors] = {}
        self.bytes: dict[str, Bytes] = {}
        self._held: dict[str, Tensors] = {}  # by client: the view that it was sent last

    def _joined(self, index: int, own: int) -> Client:
        id, scaling = f"client-{index}", self.base.scaling
        rank = own or guard.rank(self.strategy, scaling.rank, index, id, Round(0, seed=3))
        return Client(id, rank, guard.scale(self.strategy, scaling, rank), 10 + 7 * index)

    def round(self, number: int | None = None) -> Round:
        return Round(self.number if number is None else number, seed=3, wire=self.wire)

    def view(self, client: Client, round: Round) -> Tensors:
        """The whole of what a client's adapter is to be, as it arrives over the wire."""
        with self._unchanged("broadcast", self.state):
            sent = guard.view(self.strategy, self.state, client, round)
        try:
            fitting(self.kind, self.base.shapes, sent, self._adapter)
        except UserError as e:
            where = f"{type(self.strategy).__name__}.broadcast"
            raise MethodError(f"{where} gave what the adapter cannot hold: {e}") from None
        return {k: self._crossed(k, t) for k, t in sent.items()}

    def local(self, client: Client, round: Round) -> Tensors:
        """A client's adapter once it has copied its view: what stays with it wins, and what nobody
        said anything of is as it began."""
        kept = self.kept.get(client.id, {})
        return {**self._adapter, **self.view(client, round), **kept}

    def _crossed(self, name: str, tensor: Tensor) -> Tensor:
        lossy = part_of(name) in self.base.parts & self.strategy.trained
        return tensor.to(self.wire).float() if lossy else tensor.clone()

    def train(self, client: Client, weight: float) -> Update:
        """One client's round: every trained part moves, by noise of the client's own."""
        round = self.round()
        sent = self.view(client, round)
        down = self.lacks(client, sent)
        tensors = self.local(client, round)
        for name, t in select(tensors, trains(self.strategy, round, self.base.parts)).items():
            noise = torch.randn(t.shape, generator=stream(9, self.number, client.id, name))
            tensors[name] = t + 0.3 * noise
        self.kept[client.id] = select(tensors, stays(self.strategy))
        self._held[client.id] = sent
        with self._unchanged("upload", tensors):
            upload = uploaded(self.strategy, tensors, client, round, self.base.parts)
        self._screened(upload, client, sent)
        upload = {k: self._crossed(k, t) for k, t in upload.items()}
        self.bytes[client.id] = Bytes(self.nbytes(upload), self.nbytes(down))
        loss = float(torch.rand((), generator=stream(9, self.number, client.id, "loss")))
        return Update(client, upload, sent, weight, {"loss": loss, "seconds": 1.0})

    def _screened(self, upload: Tensors, client: Client, sent: Tensors) -> None:
        """Raises MethodError where a server would drop each such upload: it expects what the method
        uploads of what was sent, and finite values."""
        finite(self.strategy, "upload", upload)
        expected = uploaded(self.strategy, sent, client, self.round(), self.base.parts)
        if not (odd := sorted(upload.keys() ^ expected.keys())):
            return
        name, what = type(self.strategy).__name__, ", ".join(odd[:4])
        if odd[0] in sent:
            raise MethodError(
                f"{name}.upload sends {what} of what a client trained or of what it was sent, not "
                "of both: a server drops such updates, so let its choice not depend on values"
            )
        raise MethodError(
            f"{name}.broadcast leaves out {what}, which clients train and send: a server drops "
            "such updates, as it does not know what they began with"
        )

    def lacks(self, client: Client, view: Tensors) -> Tensors:
        """What has to be sent to a client so that it holds this view: only what differs from the
        last one, and what stays with it at first contact alone."""
        own = stays(self.strategy) if client.id in self.kept else set()
        travels = {k: t for k, t in view.items() if part_of(k) not in own}
        held = manifest(self._held.get(client.id, {}))
        return difference(travels, manifest(travels), held).tensors

    def nbytes(self, tensors: Tensors) -> int:
        """Bytes of these tensors on the wire."""
        lossy = select(tensors, self.base.parts & self.strategy.trained)
        formats = {k: t.to(self.wire) if k in lossy else t for k, t in tensors.items()}
        return nbytes(formats)

    def step(self, participants: Sequence[int] = EVERYBODY, weights: Sequence[float] = ()) -> None:
        """A round with these clients, weighted by their examples unless told otherwise."""
        self.number += 1
        chosen = [self.clients[i] for i in participants]
        shares = list(weights) or [float(c.examples) for c in chosen]
        total = sum(shares)
        self.updates = [
            self.train(c, share / total) for c, share in zip(chosen, shares, strict=True)
        ]
        self.aggregate(self.updates)

    def aggregate(self, updates: Sequence[Update]) -> None:
        """The server's part of a round: a method that leaves `aggregate` alone is folded."""
        linear, round = is_linear(self.strategy), self.round()
        received = [tensors for u in updates for tensors in (u.tensors, u.sent)]
        with self._unchanged("place" if linear else "aggregate", self.state, *received):
            if linear:
                mean = Mean()
                for u in updates:
                    mean.add(placed(self.strategy, u, self.state, round), u.weight)
                found: Changes = {**finite(self.strategy, "place", mean.result())}
            else:
                result = called(self.strategy, "aggregate", self.state, list(updates), round)
                found = changes(self.strategy, "aggregate", result, self.state)
        self.before, self.state = self.state, merge(self.state, found)

    @contextmanager
    def _unchanged(self, hook: str, *given: Mapping[str, Tensor]) -> Iterator[None]:
        """Raises MethodError where the values of these tensors are others afterwards: by a write
        that torch does not count."""
        before = [{k: t.clone() for k, t in tensors.items()} for tensors in given]
        yield
        for tensors, copies in zip(given, before, strict=True):
            for name, copy in copies.items():
                if not alike(copy, tensors[name]):
                    raise wrote(self.strategy, hook, name)

    def effective(self, client: Client) -> dict[str, Tensor]:
        """W − W0 of every module on a client, for evaluation after this round."""
        round = Round(self.number, "evaluate", seed=3, wire=self.wire)
        return deltas(self.local(client, round), client.scale, self.base.shapes)

    def server(self) -> dict[str, Tensor]:
        """W − W0 of every module by the server's state alone."""
        return deltas(self.state, self.base.scale, self.base.shapes)

    def ended(self, u: Update) -> dict[str, Tensor]:
        """W − W0 that a client of this round ended with."""
        kept = self.kept.get(u.client.id, {})
        return deltas({**u.sent, **kept, **u.tensors}, u.client.scale, self.base.shapes)

    def mean_of_products(self) -> dict[str, Tensor]:
        """Σ p_i (W_i − W0) over what this round's clients ended with: the aim of every method."""
        total: dict[str, Tensor] = {}
        for u in self.updates:
            for k, D in self.ended(u).items():
                total[k] = total.get(k, torch.zeros_like(D)) + u.weight * D
        return total
