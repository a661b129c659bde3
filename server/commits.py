"""Rounds made permanent, and told of once the server's model is scored, beside the next round."""

from pathlib import Path
from typing import Any, Self

from fedlora import profile
from fedlora.progress import Observer
from fedlora.resident import Resident
from fedlora.runs import Checkpoint, Row, RunDir
from fedlora.tensors import Tensors
from fedlora.tracking import Tracking
from server.score import Rate, Scoring, Wanted, load_global, unanswered, wanted


class Commits:
    """The rounds of a run, in their order. A context manager: trackers are open inside.

    Args:
        local: whether parts stay with clients.
    """

    def __init__(
        self, resident: Resident, run: RunDir, observer: Observer, rate: Rate, local: bool
    ) -> None:
        self._resident, self._run, self._observer, self._local = resident, run, observer, local
        self._tracking = Tracking(run, resident.config, observer.note)
        self._scoring = Scoring(run, rate)

    def __enter__(self) -> Self:
        self._tracking.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._scoring.close()
        self._tracking.__exit__(*error)

    def resume(self, checkpoint: Checkpoint) -> None:
        """Have the model scored where the process ended before it was."""
        if not checkpoint.scored:
            load_global(self._resident, checkpoint.state, checkpoint.round)
            self._score(checkpoint)

    def commit(
        self, number: int, state: Tensors, memory: dict[str, Any], rows: list[Row], aside: Path
    ) -> None:
        """Make a round permanent, after the one before is told of. Raises MethodError, and leaves
        nothing, where the state gives no model."""
        self.settle()
        config = self._resident.config
        rows = [{**unanswered(config, number), **rows[0]}, *rows[1:]]
        checkpoint = Checkpoint(number, state, memory, rows, not any(self._wanted(number)))
        if number == 0 or not checkpoint.scored:
            load_global(self._resident, state, number)
        with profile.span("checkpoint"):
            self._run.commit(checkpoint, aside, config.run.keep, config.privacy.central)
        if checkpoint.scored:
            self._tell(rows)
        else:
            self._score(checkpoint)

    def settle(self, wait: bool = True) -> None:
        """Tell of the last round that was committed, where it is still to be told of; without
        `wait` only if its scores are there."""
        with profile.span("evaluate" if wait else "other"):
            rows = self._scoring.settled(wait)
        if rows:
            self._tell(rows)

    def _score(self, checkpoint: Checkpoint) -> None:
        number = checkpoint.round
        self._scoring.begin(number, self._wanted(number), checkpoint.rows)

    def _wanted(self, number: int) -> Wanted:
        rows = len(self._resident.federation.test)
        return wanted(self._resident.config, number, self._local, rows)

    def _tell(self, rows: list[Row]) -> None:
        self._observer.round(rows[0])
        self._tracking.rows(rows)
