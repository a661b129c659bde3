"""Run directories made by hand, for pages to be made of."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import strategies
from fedlora import settings
from fedlora.page.collect import Run, read
from fedlora.runs import RunDir
from tests.fedlora.rows import client_row, round_row


def directory(
    folder: Path, name: str, rows: Iterable[Mapping[str, Any]], given: Mapping[str, Any] = {}
) -> RunDir:
    """A run directory with these rows; settings by dotted key over the defaults."""
    flat = {"run.name": name, "run.dir": str(folder), "strategy.name": "fedit", **given}
    config, _ = settings.resolve(settings.from_flat(flat), strategies.load)
    run = RunDir.create(config)
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return run


def made(folder: Path, name: str, rows: Iterable[Mapping[str, Any]], **given: Any) -> Run:
    """The same, read; settings with `__` for the dot."""
    return read(directory(folder, name, rows, {k.replace("__", "."): v for k, v in given.items()}))


def scored(*scores: float | None, **changes: Any) -> list[dict[str, Any]]:
    """Rounds with these scores from round 0 on, and 1 MB up and 2 MB down in each but the first."""
    sent = {"bytes_up": 1_000_000, "bytes_down": 2_000_000}
    none = {"bytes_up": 0, "bytes_down": 0}
    return [
        round_row(n, score=score, **(sent if n else none), **changes)
        for n, score in enumerate(scores)
    ]


def told(scores: Mapping[str, Iterable[float | None]]) -> list[dict[str, Any]]:
    """Clients' scores from round 1 on."""
    return [
        client_row(n, client, score=score)
        for client, own in scores.items()
        for n, score in enumerate(own, 1)
    ]


def answered(run: RunDir, answers: Iterable[Mapping[str, Any]]) -> None:
    """What the run's models answered."""
    text = "".join(json.dumps(row) + "\n" for row in answers)
    (run.path / "answers.jsonl").write_text(text, "utf-8")
