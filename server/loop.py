"""The round loop: sample, send, screen, aggregate, evaluate, commit; resumed to the same bits."""

import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from flwr.serverapp import Grid

from fedlora import profile
from fedlora.errors import Failed, UserError
from fedlora.guard import called, changes, checked, sends
from fedlora.progress import Observer
from fedlora.resident import Resident
from fedlora.runs import Checkpoint, Row, RunDir
from fedlora.strategy import Purpose, Round, merge, stays
from fedlora.streams import stream
from fedlora.tensors import Tensors, select
from fedlora.untrusted import plain
from server.base import ServerBase
from server.commits import Commits
from server.greeting import Greeter
from server.inbox import Inbox
from server.keeping import keep_updates
from server.privacy import Central
from server.records import client_rows, mean, round_row, withheld
from server.roster import Roster
from server.rounds import Phase, Reply, Traffic
from server.score import Rate, check, here
from server.shared import Shared
from server.spending import largest, note, told
from server.use import Use


@dataclass
class Outcome:
    """What a round's training left: the accepted updates, and who is missing and why."""

    inbox: Inbox
    failed: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    wrong: set[str] = field(default_factory=set)  # of those that failed, who blames the method


class Coordinator:
    """One federation at the server: its state between rounds, and how a round goes.

    Args:
        rate: how the server's model is scored; by default in this process.
    """

    def __init__(
        self,
        grid: Grid,
        resident: Resident,
        run: RunDir,
        observer: Observer,
        rate: Rate | None = None,
    ) -> None:
        self.grid, self.resident, self.run, self.observer = grid, resident, run, observer
        self.config, self.strategy = resident.config, resident.strategy
        # Under central privacy nobody is to know who takes part in a round, or how many.
        self.discreet = self.config.privacy.central
        self.about_clients = Observer() if self.discreet else observer
        self.roster, self.use = Roster(), Use(discreet=self.discreet)
        self.greeter = Greeter(grid, resident, self.roster, observer, run.experiment)
        self.state: Tensors = {}
        self.local = stays(self.strategy) & resident.adapter.parts
        self.shared = Shared(self.strategy.trained & resident.adapter.parts)
        self.central = Central(resident, run, self.roster) if self.config.privacy.central else None
        self.commits = Commits(resident, run, observer, rate or here(resident), bool(self.local))

    def serve(self) -> None:
        """Run all rounds, from the last whole checkpoint where there is one. Raises Failed where no
        client's update was used in any of them (under central privacy that may depend on who was
        drawn, which nobody is to know: then a run of noise alone is a run)."""
        checkpoint, wrong = self.run.resume()
        for line in wrong:
            self.observer.note(line)
        self.observer.begin(self.config.run.rounds, checkpoint.round if checkpoint else 0)
        with self.commits:  # which reads the metrics as they were rewound
            self._go_on(checkpoint)

    def _go_on(self, checkpoint: Checkpoint | None) -> None:
        last = checkpoint.round if checkpoint else 0
        if checkpoint:
            self.state = checkpoint.state
            self._remember(checkpoint)
            self.commits.resume(checkpoint)
        else:
            self._begin()
        if self.config.privacy.insecure_seed is not None:
            self.observer.note(
                "warning: privacy.insecure_seed makes the noise predictable: this run is for tests "
                "and studies, and protects nobody"
            )
        for number in range(last + 1, self.config.run.rounds + 1):
            with self.run.aside(number) as aside:
                self._round(number, aside)
        self.commits.settle()
        if self.central:
            self.central.close()
        if not self._by_chance:
            self.use.check()

    @property
    def _by_chance(self) -> bool:
        """Whether what came of the clients that were asked would tell who was drawn."""
        return self.central is not None and self.central.draws

    def _remember(self, checkpoint: Checkpoint) -> None:
        if "roster" not in checkpoint.memory:
            raise UserError(
                f"what the server knew of its clients after round {checkpoint.round} is not in "
                f"{self.run.path}: under central privacy it stays where the run was served; resume "
                "it there"
            )
        self.roster.load(checkpoint.memory["roster"])
        self.use = Use.read(checkpoint.memory)

    def _begin(self) -> None:
        """Round 0: everyone who is there joins, the method makes the first state."""
        started = time.monotonic()
        self.observer.phase(0, "start", 0)
        check(self.resident)
        for line in self.resident.notes:
            self.observer.note(line)
        self.greeter.greet()
        base = ServerBase(self.resident, self.grid, self.roster, self.observer)
        first = called(self.strategy, "begin", base)
        state = merge({}, changes(self.strategy, "begin", first, base.initial()))
        self.state = {k: t.cpu() for k, t in state.items()}  # it may come from the model's device
        if base.traffic.up:
            self.observer.note(
                "for the first state clients sent gradients of their own rows: the one thing in "
                "this run that crosses and is no adapter tensor (strategy.init asked for it)"
            )
        self.roster.founders = len(self.roster.members)
        seconds = time.monotonic() - started
        row = round_row(0, base.traffic, seconds, **self._spent())
        with self.run.aside(0) as aside:
            self._commit(0, [row], aside)

    def _round(self, number: int, aside: Path) -> None:
        started = time.monotonic()
        self.greeter.greet()
        clients = self._sample(number)
        shown, experiment = self.about_clients, self.run.experiment
        phase = Phase(
            self.grid, self.resident, self.roster, experiment, Traffic(), shown, self.shared
        )
        outcome = self._train(phase, clients, number, aside)
        arrivals, weights = outcome.inbox.arrivals, outcome.inbox.weights()
        if self.config.run.keep == "updates":
            keep_updates(phase, outcome.inbox, aside)
        self._aggregate(outcome.inbox, number)
        outcome.inbox.clear()
        self.use.round(clients, outcome.failed | outcome.dropped, outcome.wrong)
        if not self._by_chance:
            self.use.blamed(self.roster.present())

        asked = [] if self.central else sorted(weights)  # under central privacy no score is told
        found, scores = self._evaluate(phase, asked, number)
        trained = {c: a.metrics for c, a in arrivals.items()}
        held = {c: m.get("rows", 0.0) for c, m in scores.items()}
        row = round_row(
            number,
            phase.traffic,
            time.monotonic() - started,
            **found,
            personalised=mean(scores, "score", held),
            personalised_loss=mean(scores, "loss", held),
            loss=mean(trained, "loss", weights),
            clients=len(weights),
            failed=dict(sorted(outcome.failed.items())),
            dropped=dict(sorted(outcome.dropped.items())),
            **self._spent(),
        )
        examples = {c: self.roster.members[c].examples for c in clients}
        private = {c: told(self.roster.members[c], trained.get(c, {})) for c in clients}
        rows = client_rows(number, examples, weights, trained, scores, phase.traffic, private)
        self._commit(number, [row] if self.discreet else [row, *rows], aside)

    def _sample(self, number: int) -> list[str]:
        present = self.roster.present()
        if self.central:
            return self.central.sample(present, self.state, number)
        count = self.config.run.sampled(len(present))
        draw = stream(self.config.run.seed, "sample", number)
        order = torch.randperm(len(present), generator=draw)
        return sorted(present[i] for i in order[:count].tolist())

    def _train(self, phase: Phase, clients: list[str], number: int, aside: Path) -> Outcome:
        self.observer.phase(number, "train", 0 if self.discreet else len(clients))
        round = self._at(number, "train")
        keep = self.config.run.keep == "updates"
        clip = self._clip(round) if self.central else (None, None)  # whatever a client did
        outcome = Outcome(Inbox(self.strategy, self.state, round, clients, aside, keep, *clip))
        for reply in phase.run(clients, self.state, round):
            self.commits.settle(wait=False)
            self._check(reply)
            reason = plain(reply.reason or phase.fault(reply))
            metrics = reply.parcel.metrics if reply.parcel else {}
            status = "ok" if reply.parcel else reply.status
            if self.config.privacy.local:
                note(self.roster.members[reply.client], metrics, status, self.config)
            loss = metrics.get("loss")
            self.about_clients.client(number, "train", reply.client, loss, reason or None)
            if reply.parcel and not reason:
                member = self.roster.members[reply.client]
                by_rows = self.config.run.weights == "examples" and not self.central
                share = member.examples if by_rows else 1
                sent, client = phase.recalled(reply.client), member.as_client(reply.client)
                outcome.inbox.accept(client, reply.parcel.tensors, sent, share, metrics)
                reply.parcel.tensors.clear()  # or they are in memory beside the next
                continue
            silent = reply.parcel is None and not reply.malformed
            (outcome.failed if silent else outcome.dropped)[reply.client] = reason
            if status == "wrong":
                outcome.wrong.add(reply.client)
            outcome.inbox.refuse(reply.client)
        return outcome

    def _check(self, reply: Reply) -> None:
        """Raises Failed where a client of this machine, on which all are, met what nobody gets by:
        a full disk. A round without it would be no round to go on from."""
        if reply.status == "system" and getattr(self.grid, "closed", False):
            who = "a client" if self.discreet else f"client {reply.client}"
            raise Failed(f"{who} could not go on: {reply.reason}. Mend that, and resume the run")

    def _clip(self, round: Round) -> tuple[Tensors, float]:
        """Under central privacy: what clients send of the state in this round, and C."""
        parts = sends(self.strategy, round, self.resident.adapter.parts)
        return select(self.state, parts), self.config.privacy.clip

    @profile.timed("aggregate")
    def _aggregate(self, inbox: Inbox, number: int) -> None:
        usable, wanted = len(inbox.arrivals), self.config.run.min_replies
        self.observer.phase(number, "aggregate", 0)
        if self.central:
            mean = checked(self.strategy, "aggregate", inbox.changes())
            self.state |= self.central.noised(self.state, mean, usable, number)
        elif usable < wanted:
            self.observer.note(
                f"round {number}: {usable} usable updates, fewer than run.min_replies = {wanted}: "
                "the state stays as it was"
            )
            return
        else:
            self.state = merge(self.state, inbox.changes())
        self.use.used |= usable > 0
        for id in inbox.arrivals if self.local else ():
            self.roster.members[id].own = number

    def _evaluate(
        self, phase: Phase, clients: list[str], number: int
    ) -> tuple[Row, dict[str, dict[str, float]]]:
        """Each client's own model on its own held-out rows (one that fails has none); and the mean
        of theirs on the server's rows, where parts stay with them."""
        self.observer.phase(number, "evaluate", len(clients))  # none under central privacy
        round = self._at(number, "evaluate")
        scores, found = {}, {}
        for reply in phase.run(clients, self.state, round, server_rows=bool(self.local)):
            self._check(reply)
            if reply.parcel:
                scores[reply.client] = dict(reply.parcel.metrics)
            self.about_clients.client(number, "evaluate", reply.client, None, reply.reason or None)
        scores = {c: scores[c] for c in sorted(scores)}
        if self.local:
            alike = dict.fromkeys(scores, 1.0)
            known = {"score": "global", "test_loss": "global_loss"}
            found = {name: mean(scores, key, alike) for name, key in known.items()}
        return found, scores

    def _spent(self) -> Row:
        """ε and δ so far for the round's row: the server's, or those of the client that spent most;
        nothing in a run without privacy."""
        if self.central:
            return self.central.spent()
        return largest(self.roster, self.config) if self.config.privacy.on else {}

    def _commit(self, number: int, rows: list[Row], aside: Path) -> None:
        memory = {"roster": self.roster.dump(), **self.use.dump()}
        rows = [withheld(row) for row in rows] if self.discreet else rows
        self.commits.commit(number, self.state, memory, rows, aside)
        profile.mark(number)

    def _at(self, number: int, purpose: Purpose) -> Round:
        return Round(number, purpose, self.config.run.seed, self.config.run.wire_dtype)
