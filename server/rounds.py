"""One phase of a round: orders to clients, their replies, what the client lacks and no more."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from flwr.app import Message
from flwr.serverapp import Grid

from fedlora import guard
from fedlora.orders import Order
from fedlora.privacy.plan import participations
from fedlora.progress import Observer
from fedlora.resident import Resident
from fedlora.strategy import Round, Strategy, stays
from fedlora.tensors import Tensors, nbytes, part_of
from fedlora.untrusted import plain
from fedlora.views import Digests, Manifest, difference, fingerprint, manifest
from fedlora.wire import Arrays, Parcel, encode
from server.exchange import Exchange, message
from server.metrics import sane
from server.roster import Member, Roster
from server.spending import history


@dataclass
class Sent:
    """What one client was sent in a phase: the whole view that it is to hold, and its digests."""

    view: Tensors
    manifest: Manifest
    tag: str


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
    ) -> None:
        self.grid, self.config, self.strategy = grid, resident.config, resident.strategy
        self.trained = self.strategy.trained & resident.adapter.parts
        self.roster, self.experiment, self.traffic = roster, experiment, traffic
        self.observer = observer
        self.sent: dict[str, Sent] = {}
        self._digest = Digests()

    def run(
        self, clients: list[str], state: Tensors, round: Round, server_rows: bool = False
    ) -> Iterator[Reply]:
        """Send the orders, as many at once as the grid has room for; the replies, and further
        orders, are waited for as they are asked for, so that the server can work in between."""
        deadline, discreet = self.config.run.deadline, self.config.privacy.central
        exchange, arrays = Exchange(self.grid, deadline, discreet), Arrays()

        def make(client: str) -> Message:
            parcel = self._order(client, state, round, server_rows)
            self.traffic.sent(client, nbytes(parcel.tensors))
            node = self.roster.nodes[client]
            return message(parcel, node, round.purpose, str(round.number), deadline, arrays)

        names = {self.roster.nodes[c]: c for c in clients}
        exchange.push(make(client) for client in clients)
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

    def _order(self, client: str, state: Tensors, round: Round, server_rows: bool) -> Parcel:
        member, members = self.roster.members[client], len(self.roster.members)
        privacy = self.config.privacy
        planned = participations(self.config.run, members) if privacy.on else 0
        view = view_of(self.strategy, self.trained, state, member, client, round)
        held = manifest(view, self._digest)
        patch = difference(view, held, member.manifest, self._digest)
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
            fingerprint=fingerprint(held),
            own=member.own,
            drop=patch.drop,
            tails=patch.tails,
            planned=planned,
            spent=history(member, self.config, planned) if privacy.local else [],
            server_rows=server_rows,
        )
        self.sent[client] = Sent(view, held, tag)
        return Parcel(order.facts(), encode(patch.tensors, round.wire, self.trained))

    def _forget(self, client: str, facts: dict[str, object]) -> None:
        member = self.roster.members[client]
        member.tag, member.manifest = "", {}
        if facts.get("lost") == "own":
            text = f"client {client} lost the parts that stayed with it: it starts them anew"
            self.observer.note(text)
            member.own = 0


def view_of(
    strategy: Strategy,
    trained: set[str],
    state: Tensors,
    member: Member,
    client: str,
    round: Round,
) -> Tensors:
    """What the client's adapter is to be, as it will arrive: trained parts in the wire's format,
    and the parts that stay with the client only until it has its own."""
    view = guard.view(strategy, state, member.as_client(client), round)
    own = stays(strategy) if member.own else set()
    return {
        k: round.assigned(t) if part_of(k) in trained else t
        for k, t in view.items()
        if part_of(k) not in own
    }
