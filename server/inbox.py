"""Updates of a round as they arrive: folded in the clients' order, or listed for the method.

Sums in floating point depend on their order, so an update that comes before its turn waits on
disk. A linear method thus needs one accumulator and one update in memory, whatever their number.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file

from fedlora import guard
from fedlora.mean import Mean
from fedlora.runs import save
from fedlora.strategy import Client, Round, Strategy, Update, is_linear
from fedlora.tensors import Tensors


@dataclass(frozen=True)
class Arrival:
    """An accepted update on disk, its share still unnormalised."""

    client: Client
    path: Path
    sent: Tensors
    share: float
    metrics: Mapping[str, float]


class Inbox:
    """Collects one round's accepted updates."""

    def __init__(
        self, strategy: Strategy, state: Tensors, round: Round, turns: Sequence[str], folder: Path
    ) -> None:
        self._strategy, self._state, self._round = strategy, state, round
        self._turns = list(turns)  # clients still to be folded, in order
        self._folder = folder
        self._out: set[str] = set()  # clients that will send nothing usable
        self._mean = Mean()
        self.arrivals: dict[str, Arrival] = {}

    def accept(
        self,
        client: Client,
        tensors: Tensors,
        sent: Tensors,
        share: float,
        metrics: Mapping[str, float],
    ) -> None:
        """Take an update that passed the screening."""
        path = self._folder / f"arrived-{len(self.arrivals):06d}.safetensors"
        save(tensors, path)
        self.arrivals[client.id] = Arrival(client, path, sent, share, metrics)
        self._fold()

    def refuse(self, client: str) -> None:
        """This client's turn passes: it failed, or its update was dropped."""
        self._out.add(client)
        self._fold()

    def changes(self) -> guard.Changes:
        """What changes in the state, once every client was accepted or refused."""
        strategy, state, round = self._strategy, self._state, self._round
        if is_linear(strategy):
            return {**self._mean.result()}
        result = guard.called(strategy, "aggregate", state, self._updates(), round)
        return guard.changes(strategy, "aggregate", result, state)

    def weights(self) -> dict[str, float]:
        """p_i of every accepted client."""
        total = sum(a.share for a in self.arrivals.values())
        return {id: a.share / total for id, a in self.arrivals.items()}

    def clear(self) -> None:
        """Remove the files, once the state has taken them in."""
        for arrival in self.arrivals.values():
            arrival.path.unlink()

    def _fold(self) -> None:
        if not is_linear(self._strategy):
            return
        while self._turns and (self._turns[0] in self._out or self._turns[0] in self.arrivals):
            if (id := self._turns.pop(0)) in self._out:
                continue
            arrival = self.arrivals[id]
            update = self._update(arrival, arrival.share)
            placed = guard.called(self._strategy, "place", update, self._state, self._round)
            guard.changes(self._strategy, "place", placed, self._state)
            self._mean.add(guard.checked(self._strategy, "place", placed), arrival.share)

    def _updates(self) -> list[Update]:
        weights = self.weights()
        return [self._update(self.arrivals[i], weights[i]) for i in self._turns if i in weights]

    def _update(self, arrival: Arrival, weight: float) -> Update:
        tensors = load_file(arrival.path)
        return Update(arrival.client, tensors, arrival.sent, weight, arrival.metrics)
