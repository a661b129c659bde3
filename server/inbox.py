"""Updates of a round as they arrive: folded in the clients' order, or listed for the method.

Sums in floating point depend on their order, so an update that comes before its turn waits on
disk, and one that comes in its turn is folded in from where it was received. A linear method thus
needs one accumulator and one update in memory, whatever their number. Another gets a list of
updates that lie on disk, of which it holds what it asks for: one module of all clients, say.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from fedlora import guard, profile
from fedlora.mean import Mean
from fedlora.strategy import Client, Round, Strategy, Update, is_linear
from fedlora.tensorfiles import TensorFile, save
from fedlora.tensors import Tensors


@dataclass(frozen=True)
class Arrival:
    """An accepted update, its share still unnormalised; `path` is its file while it has one."""

    client: Client
    path: Path | None
    share: float
    metrics: Mapping[str, float]


class Inbox:
    """Collects one round's accepted updates.

    Args:
        turns: the clients that were asked, in the order that updates are folded or listed in.
        folder: for the files of updates that wait.
        keep: whether every update has a file until `clear`, a folded one too.
        start, clip: under central privacy, as `guard.placed` has them: each update counts with a
            change of norm `clip` at most.
    """

    def __init__(
        self,
        strategy: Strategy,
        state: Tensors,
        round: Round,
        turns: Sequence[str],
        folder: Path,
        keep: bool,
        start: Tensors | None = None,
        clip: float | None = None,
    ) -> None:
        self._strategy, self._state, self._round = strategy, state, round
        self._start, self._clip = start, clip
        self._turns = list(turns)  # clients still to be folded, in order
        self._folder, self._keep = folder, keep
        self._out: set[str] = set()  # clients that will send nothing usable
        self._sent: dict[str, Mapping[str, Tensor]] = {}  # of those whose update waits
        self._mean = Mean()
        self.arrivals: dict[str, Arrival] = {}

    @profile.timed("aggregate")
    def accept(
        self,
        client: Client,
        tensors: Tensors,
        sent: Mapping[str, Tensor],
        share: float,
        metrics: Mapping[str, float],
    ) -> None:
        """Take an update that passed the screening. Its tensors are read, and not held."""
        now = is_linear(self._strategy) and self._turns[:1] == [client.id]
        path = None
        if self._keep or not now:
            path = self._folder / f"arrived-{len(self.arrivals):06d}.safetensors"
            save(tensors, path)
        self.arrivals[client.id] = Arrival(client, path, share, metrics)
        if now:
            self._turns.pop(0)
            self._add(Update(client, tensors, sent, share, metrics))
        else:
            self._sent[client.id] = sent
        self._fold()

    @profile.timed("aggregate")
    def refuse(self, client: str) -> None:
        """This client's turn passes: it failed, or its update was dropped."""
        self._out.add(client)
        self._fold()

    def changes(self) -> guard.Changes:
        """What changes in the state, once every client was accepted or refused."""
        strategy, state, round = self._strategy, self._state, self._round
        if is_linear(strategy):
            return guard.changes(strategy, "place", self._mean.result(), state)
        result = guard.called(strategy, "aggregate", state, self._updates(), round)
        return guard.changes(strategy, "aggregate", result, state)

    def weights(self) -> dict[str, float]:
        """p_i of every accepted client."""
        total = sum(a.share for a in self.arrivals.values())
        return {id: a.share / total for id, a in self.arrivals.items()}

    def clear(self) -> None:
        """Remove the files, once the state has taken them in, and let go of the state that was."""
        for arrival in self.arrivals.values():
            if arrival.path:
                arrival.path.unlink()
        self._state, self._sent, self._mean = {}, {}, Mean()

    def _fold(self) -> None:
        """Fold in those whose turn has come while they waited."""
        if not is_linear(self._strategy):
            return
        while self._turns and (self._turns[0] in self._out or self._turns[0] in self.arrivals):
            if (id := self._turns.pop(0)) in self._out:
                continue
            arrival = self.arrivals[id]
            self._add(self._waiting(arrival, arrival.share))
            del self._sent[id]
            if arrival.path and not self._keep:
                arrival.path.unlink()
                self.arrivals[id] = replace(arrival, path=None)

    def _add(self, update: Update) -> None:
        if type(self._strategy).place is Strategy.place and self._start is None:
            self._mean.add(update.tensors, update.weight)  # as it was screened
            return
        placed = guard.placed(
            self._strategy, update, self._state, self._round, self._start, self._clip
        )
        self._mean.add(placed, update.weight)

    def _updates(self) -> list[Update]:
        weights = self.weights()
        return [self._waiting(self.arrivals[i], weights[i]) for i in self._turns if i in weights]

    def _waiting(self, arrival: Arrival, weight: float) -> Update:
        assert arrival.path
        client, metrics = arrival.client, arrival.metrics
        return Update(client, TensorFile(arrival.path), self._sent[client.id], weight, metrics)
