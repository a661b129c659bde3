"""A run in the tools that people already look at, as `run.track` names them.

    series.py        rows of metrics.jsonl as named numbers by round
    tensorboard.py   event files in the run directory
    wandb.py         Weights & Biases, online or offline
    mlflow.py        an MLflow server or a local store

A tracker is handed what was committed to `metrics.jsonl` and knows nothing else of a run, so it
cannot tell more than that file. What keeps one from starting is the user's to mend before anything
trains; one that fails later is noted once, and the run goes on without it.
"""

import importlib
import os
import re
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

from fedlora import report, settings
from fedlora.config import Config
from fedlora.errors import UserError
from fedlora.runs import Row, RunDir
from fedlora.tracking.series import Series
from fedlora.tracking.tracker import Facts, Tracker

SECRETS = ("WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")


class Tracking:
    """The trackers of one run, open inside the block: whatever round they lack of the run's metrics
    is handed over at once, the rest as rounds are committed.

    Raises UserError on entering where a package is missing or a tracker does not start.
    """

    def __init__(self, run: RunDir, config: Config, note: Callable[[str], None]) -> None:
        self.run, self.note = run, note
        self.names: tuple[str, ...] = tuple(dict.fromkeys(config.run.track))
        tags = {"method": config.method, "model": config.model.name}
        flat, timeless = settings.to_flat(config), config.privacy.central
        self.facts = Facts(run.path, run.experiment, run.path.name, tags, flat, timeless)
        self.series = Series()
        self.open: dict[str, Tracker] = {}

    def __enter__(self) -> Self:
        kinds = {name: kind(name) for name in self.names}  # all are there before one starts
        for name, tracker in kinds.items():
            try:
                self.open[name] = tracker(self.facts)
            except Exception as e:
                self._close(done=False)
                raise UserError(
                    f"{name} does not start: {_said(e)}: mend that, or leave it out of run.track"
                ) from None
        for name, kept in self.open.items():
            if kept.where:
                self.note(f"{name}: {kept.where}")
        self.rows(report.load(self.run.metrics))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close(done=kind is None)

    def rows(self, rows: Iterable[Row]) -> None:
        """What was committed, in the order of metrics.jsonl: whole rounds."""
        for round, values in self.series.add(rows):
            for name, tracker in list(self.open.items()):
                try:
                    if round > tracker.last:
                        tracker.log(round, values)
                except Exception as e:
                    del self.open[name]
                    self._lost(name, e)

    def _close(self, done: bool) -> None:
        while self.open:
            name, tracker = self.open.popitem()
            try:
                tracker.close(done)
            except Exception as e:
                self._lost(name, e)

    def _lost(self, name: str, error: Exception) -> None:
        self.note(f"{name} fails: {_said(error)}; the run goes on without it")


def kind(name: str) -> type[Tracker]:
    """The class of that name. Raises UserError where its package is not installed."""
    try:
        return importlib.import_module(f"fedlora.tracking.{name}").Tracker
    except ImportError as e:
        raise UserError(
            f"run.track names {name}, but {_said(e)}: pip install 'fedlora[{name}]', "
            "or leave it out"
        ) from None


def _said(error: Exception) -> str:
    """An error's first line without what gives access: passwords in addresses, keys."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    for secret in filter(None, map(os.environ.get, SECRETS)):
        text = text.replace(secret, "***")
    return re.sub(r"//[^/\s]*@", "//***@", text)
