"""Nodes come and go: who is new says who it is, who is gone is not asked."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from flwr.serverapp import Grid

from fedlora.errors import UserError
from fedlora.progress import Observer
from fedlora.resident import Resident
from fedlora.untrusted import plain
from fedlora.wire import Parcel
from server import agreement
from server.exchange import FASTEST, Answer, Exchange, message
from server.identity import Claim, claim, holders, listed
from server.roster import Roster

PAUSE = 0.5  # seconds between looks at who is there
FIRST = 300.0  # seconds that nobody else says who it is until those that do not are let be
LATER = 60.0  # the same once the first greeting is over: who takes longer joins in a later round


@dataclass(frozen=True)
class New:
    """A client that was admitted, and is not a member yet, or not again."""

    facts: dict[str, Any]
    claim: Claim


class Greeter:
    """Keeps a roster's nodes up to date with the grid's. Raises UserError where the operator's list
    of clients cannot be used.

    A node that does not say who it is costs the others one wait. The question to it stays open, as
    it may be loading a large model: its answer is taken whenever it comes.
    """

    def __init__(
        self, grid: Grid, resident: Resident, roster: Roster, observer: Observer, experiment: str
    ) -> None:
        self.grid, self.resident, self.roster, self.observer = grid, resident, roster, observer
        self._experiment, self._listed = experiment, listed()
        self._greeted: set[int] = set()
        self._silent: set[int] = set()
        self._new: dict[str, New] = {}
        self._rivals: dict[str, set[int]] = {}  # refused, as another was that client
        self._open: list[Exchange] = []  # with questions that may still be answered
        self._expected: set[int] = set()  # who is asked, and waited for
        self._slow: set[int] = set()  # who was waited for
        self._lost: set[int] = set()  # whose question or answer was lost on its way
        self._heard = 0.0  # when a node last said who it is
        self._closed = getattr(grid, "closed", False)
        self._patience = FIRST

    def greet(self) -> None:
        """Wait until enough clients for a round are there; who is new then becomes a member, in the
        clients' order and not in that of their coming. Raises UserError at the deadline, or at once
        where the grid is closed (a simulation has all its nodes from the start)."""
        run = self.resident.config.run
        wanted = run.clients_per_round
        need = wanted if isinstance(wanted, int) else run.min_replies
        if not self.roster.founders:
            need = max(need, run.min_clients)
        self._heard = time.monotonic()
        until = self._heard + run.deadline
        self._greeted -= self._silent  # who did not answer is asked again, once a round
        self._silent = set()
        waiting, pause = False, FASTEST
        while True:
            nodes = set(self.grid.get_node_ids())
            self._leave(nodes)
            self._ask(sorted(nodes - self._greeted))
            self._greeted = nodes
            self._hear()
            if self._expects():
                time.sleep(pause)
                pause = min(2 * pause, PAUSE)
                continue
            there = len(self.roster.nodes)
            if there >= need:
                self._join()
                return
            if self._closed or time.monotonic() > until:
                raise UserError(
                    f"{need} clients are needed for a round, but {there} can take part: lower "
                    "run.clients_per_round, run.min_replies or run.min_clients, or bring in more "
                    "clients"
                )
            if not waiting:
                waiting = True
                self.observer.note(f"waiting for {need} clients: {there} can take part so far")
            self._greeted = nodes - self._lost
            self._lost = set()
            time.sleep(PAUSE)

    def _leave(self, nodes: set[int]) -> None:
        """Who is gone goes first: a client that restarted comes back as another node."""
        for client in [c for c, n in self.roster.nodes.items() if n not in nodes]:
            del self.roster.nodes[client]
            self._new.pop(client, None)
            self._greeted -= self._rivals.pop(client, set())  # it may have been the real one
        self._expected &= nodes

    def _expects(self) -> bool:
        """Whether some were asked who are to be waited for. In a closed grid nobody is slow:
        all answer, and who joins does not depend on how fast."""
        deadline = self.resident.config.run.deadline
        patience = deadline if self._closed else min(self._patience, deadline)
        return bool(self._expected) and time.monotonic() - self._heard < patience

    def _join(self) -> None:
        for client in sorted(self._new):
            new = self._new.pop(client)
            agreement.join(self.roster, client, new.facts, new.claim, self.resident)
        self._slow |= self._expected
        self._expected, self._patience = set(), LATER

    def _ask(self, nodes: list[int]) -> None:
        """Tell nodes what the run is and ask who they are."""
        if not nodes:
            return
        deadline = self.resident.config.run.deadline
        exchange = Exchange(self.grid, deadline)
        run = Parcel({**agreement.known(self.resident), "experiment": self._experiment})
        exchange.push(message(run, node, "query", "0", deadline) for node in nodes)
        self._open.append(exchange)
        self._expected |= {*nodes} - self._slow

    def _answers(self) -> Iterator[Answer]:
        """Those that are there, to whichever question."""
        for exchange in self._open:
            yield from exchange.answers(wait=False)
        self._open = [exchange for exchange in self._open if exchange.open]

    def _hear(self) -> None:
        """Take what nodes say of themselves; those that cannot say or disagree are named and left
        out."""
        said: dict[int, dict[str, Any]] = {}
        for answer in self._answers():
            self._expected.discard(answer.node)
            if answer.lost:  # on the way, to be asked again
                self._lost.add(answer.node)
            elif answer.parcel is None:
                self._slow.add(answer.node)
            if answer.parcel is None:
                self._silent.add(answer.node)
                self.observer.note(f"a node does not say who it is: {answer.reason}")
            elif answer.parcel.facts.get("status") != "ok":
                reason = plain(answer.parcel.facts.get("reason"))
                self.observer.note(f"a node cannot take part: {reason}")
            else:
                said[answer.node] = answer.parcel.facts
        if not said:
            return
        self._heard, known = time.monotonic(), holders(self.grid)
        for node in sorted(said, key=lambda n: (plain(said[n].get("client")), n)):
            new = New(said[node], claim(known.get(node, ""), said[node].get("proof")))
            if reason := self._refusal(node, new):
                name = plain(new.facts.get("client"), 130)
                self.observer.note(f"client {name} refused: {reason}")
            else:
                client = new.facts["client"]
                self.roster.nodes[client], self._new[client] = node, new

    def _refusal(self, node: int, new: New) -> str:
        """Why a node may not take part as the client that it says it is, or ""."""
        if not new.claim.holder:
            return "the superlink does not know it any more"
        if reason := agreement.refusal(new.facts, self.resident):
            return reason
        client = new.facts["client"]
        member, waiting = self.roster.members.get(client), self._new.get(client)
        before = waiting.claim if waiting else None
        if member and member.holder:
            before = member.claim
        reason = agreement.taken(client, new.claim, before, self._listed)
        if reason and client in self.roster.nodes:
            self._rivals.setdefault(client, set()).add(node)
        return reason
