"""A run directory with metrics written by hand, and what trackers are to make of them."""

import json
from pathlib import Path
from typing import Any

import strategies
from fedlora import settings
from fedlora.config import Config
from fedlora.runs import RunDir
from fedlora.tracking import Tracking

Row = dict[str, Any]


def rows(number: int) -> list[Row]:
    """A round's: of two clients, one has no loss; round 0 has no clients."""
    whole = {"kind": "round", "round": number, "score": number / 8, "personalised": None}
    whole |= {"test_loss": 0.5, "bytes_up": 100 * number, "bytes_down": 7, "seconds": 1.5}
    whole |= {"clients": 2, "failed": {"tweets": "gone"}, "dropped": {}, "epsilon": 0.25 * number}
    facts = {"kind": "client", "round": number, "seconds": 2.0, "examples": 9}
    books = {"client": "books", "score": 0.75, "loss": 0.5, "epsilon": 0.125}
    tweets = {"client": "große tweets", "score": 0.5, "loss": None}
    return [whole, *([facts | books, facts | tweets] if number else [])]


def values(number: int) -> dict[str, float]:
    """The numbers of such a round, after all rounds before it."""
    found = {"score": number / 8, "test_loss": 0.5, "perplexity": 1.6487212707001282}
    found |= {"bytes_up": 100 * number, "bytes_up_total": 50 * number * (number + 1)}
    found |= {"bytes_down": 7, "bytes_down_total": 7 * (number + 1)}
    found |= {"seconds": 1.5, "clients": 2, "epsilon": 0.25 * number}
    clients = {"score/books": 0.75, "loss/books": 0.5, "epsilon/books": 0.125}
    clients |= {"score/große tweets": 0.5}
    return {f"round/{k}": v for k, v in found.items()} | (clients if number else {})


def create(root: Path, *track: str) -> tuple[RunDir, Config]:
    """A new run that these trackers follow."""
    given = {"run": {"dir": str(root), "name": "run", "track": list(track)}}
    config, _ = settings.resolve(given, strategies.load)
    return RunDir.create(config), config


def write(run: RunDir, count: int) -> None:
    """The metrics of so many rounds and round 0, as `RunDir.resume` leaves them."""
    lines = [json.dumps(row) + "\n" for n in range(count + 1) for row in rows(n)]
    run.metrics.write_text("".join(lines), "utf-8")


def follow(run: RunDir, config: Config, *numbers: int) -> list[str]:
    """Track these rounds, as the round loop does, and those that are there already; the notes."""
    notes: list[str] = []
    with Tracking(run, config, notes.append) as tracking:
        for number in numbers:
            tracking.rows(rows(number))
    return notes
