"""The bytes of a round's messages, whole, beside those of the numbers that must cross.

What must cross, of a model with L layers of width n, two adapted modules a layer and c labels:

    A: 2 L r n numbers   B: 2 L n r   head: c n + c
"""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from flwr.app import Message
from flwr.common.serde import message_to_proto

from fedlora.config import Config
from fedlora.progress import Observer
from fedlora.resident import Resident
from fedlora.runs import RunDir
from fedlora.strategy import Strategy
from server.loop import Coordinator
from simulations.grid import InProcessGrid
from simulations.pool import Pool

LAYERS, WIDTH, LABELS = 6, 384, 2  # MiniLM's, and the bundled data's
FACTOR = 2 * LAYERS * WIDTH  # numbers of A, or of B, a rank
HEAD = LABELS * WIDTH + LABELS
# Times that a method sends each way, as its paper's algorithm says: factors, heads.
SENDS = {"FedIT": (2, 1), "FFA": (1, 1), "FedSA": (1, 0)}


class Weight(NamedTuple):
    """Bytes of one client's messages in a later round, and of the numbers in them."""

    method: str
    way: str
    messages: float
    numbers: int

    @property
    def ratio(self) -> float:
        return self.messages / self.numbers


class Weighed(InProcessGrid):
    """Adds up the messages that pass, as they are serialised, by way and round."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.passed: Counter[tuple[str, str]] = Counter()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        batch = list(messages)
        self._weigh("down", batch)
        return super().push_messages(batch)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = list(super().pull_messages(message_ids))
        self._weigh("up", replies)
        return replies

    def _weigh(self, way: str, messages: list[Message]) -> None:
        for message in messages:
            self.passed[way, message.metadata.group_id] += message_to_proto(message).ByteSize()


def weigh(
    method: str, rank: int, config: Config, strategy: Strategy, watch: Observer
) -> list[Weight]:
    """The last round of a run: what clients have by then is not sent again."""
    resident, clients = Resident(config, strategy), config.data.clients
    run = RunDir.create(config)
    grid = Weighed(config, clients, Path(run.path) / "clients", Pool(0, 1))
    Coordinator(grid, resident, run, watch).serve()
    factors, heads = SENDS[method]
    numbers = 4 * (factors * FACTOR * rank + heads * HEAD)
    last = str(config.run.rounds)
    return [
        Weight(method, way, grid.passed[way, last] / clients, numbers) for way in ("up", "down")
    ]
