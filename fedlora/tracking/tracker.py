"""What each tracker is."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

Value = bool | int | float | str


@dataclass(frozen=True)
class Facts:
    """What a tracker is told of a run at its start: the directory, the experiment's id (another
    for each run, the same when it is resumed), a name, tags, the configuration by dotted key, and
    whether times that tell how long a round took are a secret."""

    folder: Path
    id: str
    name: str
    tags: Mapping[str, str]
    settings: Mapping[str, Value]
    timeless: bool = False


class Tracker:
    """Takes a run's numbers, a round at a time; its methods may raise whatever they like.

    `last` is the last round that it has of this run already, −1 if none; `where` an address at
    which to look, if there is one.
    """

    last = -1
    where = ""

    def __init__(self, facts: Facts) -> None:
        """Start, or go on with, the run that has this id."""

    def log(self, round: int, values: Mapping[str, float]) -> None:
        """The numbers of a round, in the order of rounds."""

    def close(self, done: bool) -> None:
        """The run has come to its end, or has not."""
