"""The frozen model as a method's `begin` sees it; gradients come from the server or clients."""

from collections.abc import Mapping
from typing import Literal

import torch
from flwr.serverapp import Grid

from fedlora import estimate
from fedlora.adapters.initial import initial
from fedlora.errors import UserError
from fedlora.progress import Observer
from fedlora.resident import Resident
from fedlora.streams import stream
from fedlora.tensors import Tensors, nbytes, select
from fedlora.untrusted import plain
from fedlora.wire import Parcel
from server.exchange import Exchange, message
from server.roster import Roster
from server.rounds import Traffic
from server.screening import fault

REPLY = 256 * 2**20  # bytes of gradients in a client's reply
ROWS = 128  # rows behind a gradient where the server holds none of its own


class ServerBase:
    """Implements `fedlora.strategy.Base`; counts the bytes that gradients from clients cost. A
    client that gives none that can be used is left out from then on, with a note."""

    def __init__(self, resident: Resident, grid: Grid, roster: Roster, observer: Observer) -> None:
        self._resident, self._grid, self._roster = resident, grid, roster
        self._observer = observer
        self._without: dict[str, str] = {}  # who gave none, and why
        self._deadline = resident.config.run.deadline
        self._known: dict[tuple[str, str], torch.Tensor] = {}
        config, wire = resident.config, resident.config.run.wire_dtype
        self._device = config.simulation.device  # where there is much to compute, wherever W0 is
        self._initial = initial(
            resident.adapter, config.adapter, config.run.seed, wire, self._device
        )
        self.rank = resident.adapter.scaling.rank
        self.scale = resident.adapter.scaling.at(self.rank)
        train = resident.config.train
        self.learning_rate = train.lr / max(1, train.warmup)  # that of the first step
        self.shapes: Mapping[str, tuple[int, int]] = resident.adapter.shapes
        self.traffic = Traffic()

    def initial(self) -> Tensors:
        return {k: t.clone() for k, t in self._initial.items()}

    def weight(self, module: str) -> torch.Tensor:
        return self._resident.adapter.weight(module).to(self._device)

    def generator(self, name: str) -> torch.Generator:
        return stream(self._resident.config.run.seed, "begin", name)

    def gradient(
        self, module: str, over: Literal["server", "clients", "sketch"] = "server"
    ) -> torch.Tensor:
        """G (m, n) of one module. As many modules are measured together as memory has room for,
        in order, and a gradient is forgotten once it was asked for."""
        if over != "server" and self._resident.config.privacy.on:
            raise UserError(
                f"a first state from gradients over '{over}' would show clients' rows, which no "
                "noise protects: under [privacy] take them over 'server', its public rows"
            )
        if (over, module) not in self._known:
            self._known.clear()  # its memory is wanted for the next
            group = next(g for g in estimate.groups(*self._grouped(over)) if module in g)
            measured: Tensors = getattr(self, f"_{over}")(group)
            self._known = {(over, m): g for m, g in measured.items()}
        return self._known.pop((over, module))

    def _grouped(self, over: str) -> tuple[Mapping[str, tuple[int, int]], float]:
        """The shapes of what is held of each module, and the bytes that all may take: of the
        server's own gradients what memory has room for, of clients' what a reply may have."""
        if over == "server":
            return self.shapes, estimate.room(self._resident)
        if over == "clients":
            return self.shapes, REPLY
        return {m: (max(shape), 2 * self.rank) for m, shape in self.shapes.items()}, REPLY

    def _server(self, group: list[str]) -> Tensors:
        rows = len(self._resident.federation.public)
        if rows == 0:
            raise UserError(
                "the server has no public rows to take gradients over: set data.public above 0, "
                "or let clients give theirs with strategy.init=clients (or sketch), or use xs"
            )
        with self._resident.at_work():
            return estimate.summed(self._resident, "public", "", group, rows, self._head())

    def _clients(self, group: list[str]) -> Tensors:
        return self._gathered({m: self.shapes[m] for m in group}, {"stage": "sum"}, {})

    def _sketch(self, group: list[str]) -> Tensors:
        size = 2 * self.rank  # columns
        wide = {m: (self.shapes[m][0], size) for m in group}
        ranges = self._gathered(wide, {"stage": "range", "size": size}, {})
        q = {m: torch.linalg.qr(y.double()).Q.float() for m, y in ranges.items()}
        sent = {f"{m}.range": t for m, t in q.items()}
        flat = {m: (q[m].shape[1], self.shapes[m][1]) for m in group}
        projected = self._gathered(flat, {"stage": "project"}, sent)
        return {m: q[m] @ c for m, c in projected.items()}

    def _gathered(
        self, shapes: Mapping[str, tuple[int, int]], facts: dict[str, object], sent: Tensors
    ) -> Tensors:
        """The sum over the clients that are there and give theirs, in their order, of one tensor a
        module. Raises UserError where none does."""
        asked = [c for c in self._roster.present() if c not in self._without]
        total = sum(self._roster.members[c].examples for c in asked)
        replies: dict[str, Tensors] = {}
        exchange = Exchange(self._grid, self._deadline)
        names = {self._roster.nodes[client]: client for client in asked}
        for client in asked:
            share = self._roster.members[client].examples / total
            rows = max(1, round(share * (self._resident.config.data.public or ROWS)))
            query = Parcel(
                {**facts, "modules": list(shapes), "rows": rows}, {**self._head(), **sent}
            )
            self.traffic.sent(client, nbytes(query.tensors))
            node = self._roster.nodes[client]
            exchange.push([message(query, node, "query.gradients", "0", self._deadline)])
        expected = {m: torch.zeros(()).expand(shape) for m, shape in shapes.items()}
        for answer in exchange.answers():
            client = names[answer.node]
            parcel = answer.parcel or Parcel({"reason": answer.reason})
            if parcel.facts.get("status") != "ok":
                reason = plain(parcel.facts.get("reason"))
            else:
                reason = fault(parcel.tensors, expected, None)
            if reason:
                self._leave_out(client, reason)
                continue
            self.traffic.received(client, parcel.received)
            replies[client] = parcel.tensors
        if not replies:
            reasons = "; ".join(f"{c}: {why}" for c, why in sorted(self._without.items())[:5])
            raise UserError(f"no client gave gradients for the first state: {reasons}")
        return {m: sum((replies[c][m] for c in sorted(replies)), expected[m]) for m in shapes}

    def _leave_out(self, client: str, reason: str) -> None:
        self._without[client] = plain(reason)
        self._observer.note(
            f"client {client} gave no gradients for the first state, which is made without its "
            f"rows: {plain(reason)}"
        )

    def _head(self) -> Tensors:
        return select(self._initial, {"head"})
