"""Runs as the page needs them: plain data, read from their directories."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedlora import lines, report, settings
from fedlora.config import Config
from fedlora.report import Row
from fedlora.runs import RunDir

BASELINES = ("centralised", "local")  # as fedlora compare names them


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        config: the resolved configuration by dotted key, as in `"run.rounds": 5`.
        rounds, clients: the rows of `metrics.jsonl`, as `fedlora.report` describes them.
        answers: those of `answers.jsonl`: round, row, prompt, reference, answer.
        environment: what it was made with; empty for a run from before that was recorded.
    """

    path: Path
    config: Mapping[str, Any]
    rounds: list[Row]
    clients: list[Row]
    answers: list[Row]
    environment: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def method(self) -> str:
        return _method(self.config)

    @property
    def last(self) -> int:
        """The last round that finished; -1 where none did."""
        return max((row["round"] for row in self.rounds), default=-1)

    def values(self, key: str) -> dict[int, float]:
        """A field of the rounds' rows by round, where it is known."""
        return {row["round"]: row[key] for row in self.rounds if known(row.get(key))}


def _method(config: Mapping[str, Any]) -> str:
    """The method's name, or the baseline's: one client with everyone's rows is centralised."""
    return "centralised" if config["data.pooled"] else str(config["strategy.name"])


def known(value: object) -> bool:
    """Whether this is a number that can be drawn: what is unknown or infinite is null, and a loss
    may be NaN."""
    return isinstance(value, int | float) and math.isfinite(value)


def find(names: Sequence[str]) -> tuple[list[RunDir], Path | None]:
    """The runs that were meant, each once, in the order given; and the directory that was, where a
    single one was given.

    Args:
        names: run directories, folders that hold some, or names of either inside `runs`.

    Raises UserError where there is no run.
    """
    found: dict[Path, RunDir] = {}
    folder = None
    for name in names:
        folder, runs = _inside(name)
        found |= {run.path.resolve(): run for run in runs}
    return list(found.values()), folder if len(names) == 1 else None


def _inside(name: str) -> tuple[Path, list[RunDir]]:
    for folder in (Path(name), Path("runs") / name):
        if (folder / "run.json").is_file():
            break
        if paths := sorted(folder.glob("*/run.json")):
            return folder, [RunDir(path.parent) for path in paths]
    run = RunDir.open(name)
    return run.path, [run]


def read(directory: RunDir) -> Run:
    """One run. Raises UserError where a file of it is missing or damaged."""
    rows, answers = report.load(directory.metrics), directory.answers
    defaults = Config().model_dump(mode="json")
    given = settings.merged(defaults, settings.read(directory.path / "config.toml", []))
    config = _flat(given)
    # A baseline sends nothing: only its simulation has a server and clients.
    silent = {"bytes_up": 0, "bytes_down": 0} if _method(config) in BASELINES else {}
    return Run(
        path=directory.path,
        config=config,
        rounds=[{**row, **silent} for row in report.rounds_of(rows)],
        clients=[row for row in rows if row["kind"] == "client"],
        answers=[*lines.read(answers, lines.ANSWERS)] if answers.is_file() else [],
        environment=directory.facts.get("environment", {}),
    )


def _flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {
        f"{section}.{key}": None if value == "null" else value
        for section, table in tree.items()
        for key, value in table.items()
    }
