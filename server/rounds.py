"""One phase of a round: orders to clients, their replies, what the client lacks and no more."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

from flwr.app import Message
from flwr.serverapp import Grid

from fedlora import guard, profile
from fedlora.orders import Order
from fedlora.privacy.plan import participations
from fedlora.progress import Observer
from fedlora.resident import Resident
from fedlora.strategy import Round, Strategy, stays
from fedlora.tensors import Tensors, part_of
from fedlora.untrusted import plain
from fedlora.views import Manifest, difference
from fedlora.wire import Parcel, size
from server import screening
from server.exchange import Exchange, message
from server.metrics import sane
from server.roster import Member, Roster
from server.shared import Recalled, Shared
from server.spending import history


@dataclass
class Sent:
    """What one client was sent in a phase: the name and the digests of the view that it is to hold;
    the view itself, before its trip, where the state has all its tensors anyway."""

    tag: str
    manifest: Manifest
    view: Tensors | None


@dataclass
class Traffic:
    """Bytes of tensors a client, both ways, over a round."""

    up: dict[str, int] = field(default_factory=dict)
    down: dict[str, int] = field(default_factory=dict)

    def received(self, client: str, count: int) -> None:
        self.up[client] = self.up.get(client, 0) + count

    def sent(self, client: str, count: int) -> None:
        self.down[client] = self.down.get(client, 0) + count


@dataclass
class Reply:
    """What a client answered. Metrics are possible ones, and a reason is one line of printable
    text, whatever it sent; `status` is its own word for why there is no parcel, if it has one."""

    client: str
    parcel: Parcel | None
    reason: str = ""
    malformed: bool = False
    status: str = ""


class Phase:
    """Sends every client its order and yields the replies; a client that lost its disk is sent
    everything: the view, and if that was lost too, the first values of its own parts. Where a node
    or its process ended over an order and the node is there, the order is sent once more: done
    again, it ends in the same bits."""

    def __init__(
        self,
        grid: Grid,
        resident: Resident,
        roster: Roster,
        experiment: str,
        traffic: Traffic,
        observer: Observer,
        shared: Shared,
    ) -> None:
        self.grid, self.config, self.strategy = grid, resident.config, resident.strategy
        self._parts = resident.adapter.parts
        self.roster, self.experiment, self.traffic = roster, experiment, traffic
        self.observer, self.shared = observer, shared
        self.sent: dict[str, Sent] = {}

    def run(
        self, clients: list[str], state: Tensors, round: Round, server_rows: bool = False
    ) -> Iterator[Reply]:
        """Send the orders, as many at once as the grid has room for; the replies, and further
        orders, are waited for as they are asked for, so that the server can work in between."""
        deadline, discreet = self.config.run.deadline, self.config.privacy.central
        exchange = Exchange(self.grid, deadline, discreet)
        self._state, self._round, self.sent = state, round, {}
        self.shared.begin(state, round)

        def make(client: str) -> Message:
            parcel = self._order(client, server_rows)
            arrays = self.shared.arrays(parcel.tensors)
            self.traffic.sent(client, sum(len(array.data) for array in arrays.values()))
            node = self.roster.nodes[client]
            return message(parcel, node, round.purpose, str(round.number), deadline, arrays)

        def orders() -> Iterator[Message]:
            yield from map(make, clients)
            self.shared.end()

        names = {self.roster.nodes[c]: c for c in clients}
        exchange.push(orders())
        return self._replies(exchange, names, round, lambda client: exchange.again(make(client)))

    def _replies(
        self,
        exchange: Exchange,
        names: dict[int, str],
        round: Round,
        again: Callable[[str], None],
    ) -> Iterator[Reply]:
        resent: dict[str, int] = {}
        lost: set[str] = set()
        for answer in exchange.answers():
            client = names[answer.node]
            facts = answer.parcel.facts if answer.parcel else {}
            if answer.lost and client not in lost and answer.node in self.grid.get_node_ids():
                lost.add(client)
                self.observer.note(
                    f"round {round.number}, {round.purpose}: {client} is asked once more, after: "
                    f"{answer.reason}"
                )
                again(client)
            elif answer.parcel is None:
                yield Reply(client, None, answer.reason, answer.malformed)
            elif facts.get("status") == "stale" and resent.get(client, 0) < 2:
                resent[client] = resent.get(client, 0) + 1
                self._forget(client, facts)
                again(client)
            elif facts.get("status") != "ok":
                said = plain(facts.get("reason") or "it gives no reason")
                yield Reply(client, None, said, status=plain(facts.get("status"), 20))
            elif (facts.get("experiment"), facts.get("round")) != (self.experiment, round.number):
                yield Reply(client, None, "it answers another run or round", True)
            elif round.purpose == "evaluate" and answer.parcel.tensors:
                yield Reply(client, None, "it sends tensors, which nobody asked for", True)
            else:
                member, sent = self.roster.members[client], self.sent[client]
                member.tag, member.manifest = sent.tag, sent.manifest
                self.traffic.received(client, answer.parcel.received)
                known = sane(answer.parcel.metrics, member.examples, self.config.data.holdout)
                answer.parcel.metrics = known
                yield Reply(client, answer.parcel)

    def asked(self, client: str) -> Tensors:
        """What the client's adapter is to be, before its trip in the wire's format. A view that is
        made for one client alone is not kept, but made again."""
        if (sent := self.sent.get(client)) and sent.view is not None:
            return sent.view
        member = self.roster.members[client]
        return asked_of(self.strategy, self._state, member, client, self._round)

    def recalled(self, client: str) -> Recalled:
        """What the client's adapter is to be, as it arrives."""
        return Recalled(partial(self.asked, client), self.shared.assigned)

    @profile.timed("aggregate")
    def fault(self, reply: Reply) -> str:
        """Why an update is dropped, or ""."""
        assert reply.parcel is not None
        loss = reply.parcel.metrics.get("loss", math.nan)  # in a private run nobody tells it
        if not (self.config.privacy.on or math.isfinite(loss)):
            return "its training loss is not finite, or beyond all bounds"
        client = self.roster.members[reply.client].as_client(reply.client)
        bound = self.config.run.norm_bound
        # Of what it would have uploaded unchanged, values count where a change is measured alone.
        sent = self.asked(reply.client) if bound is None else {**self.recalled(reply.client)}
        expected = guard.uploaded(self.strategy, sent, client, self._round, self._parts)
        wrong = screening.fault(reply.parcel.tensors, expected, bound)
        due = size(expected, self._round.wire, self.strategy.trained)
        if not wrong and reply.parcel.received != due:
            return f"its tensors are {reply.parcel.received} bytes, not {due}: see run.wire"
        return wrong

    def _order(self, client: str, server_rows: bool) -> Parcel:
        member, members = self.roster.members[client], len(self.roster.members)
        privacy, round = self.config.privacy, self._round
        planned = participations(self.config.run, members) if privacy.on else 0
        self.sent.pop(client, None)
        view = self.asked(client)
        held, print = self.shared.manifest(view)
        patch = difference(view, held, member.manifest, self.shared.blocks)
        tag = f"{round.number:04d}-{int(round.purpose == 'evaluate')}"
        order = Order(
            experiment=self.experiment,
            round=round.number,
            purpose=round.purpose,
            client=client,
            rank=member.rank,
            scale=member.scale,
            examples=member.examples,
            tag=tag,
            basis=member.tag,
            fingerprint=print,
            own=member.own,
            drop=patch.drop,
            tails=patch.tails,
            planned=planned,
            spent=history(member, self.config, planned) if privacy.local else [],
            server_rows=server_rows,
        )
        self.sent[client] = Sent(tag, held, view if self.shared.has(view) else None)
        return Parcel(order.facts(), patch.tensors)

    def _forget(self, client: str, facts: dict[str, object]) -> None:
        member = self.roster.members[client]
        member.tag, member.manifest = "", {}
        if facts.get("lost") == "own":
            text = f"client {client} lost the parts that stayed with it: it starts them anew"
            self.observer.note(text)
            member.own = 0


def asked_of(
    strategy: Strategy, state: Tensors, member: Member, client: str, round: Round
) -> Tensors:
    """What the client's adapter is to be: the parts that stay with the client only until it has its
    own."""
    view = guard.view(strategy, state, member.as_client(client), round)
    own = stays(strategy) if member.own else set()
    return {k: t for k, t in view.items() if part_of(k) not in own}
