"""A run as lines of text: what the round loop says, told by one process and shown by another.

A ServerApp's standard output is the one thing that Flower brings to whoever started the run, and it
holds whatever else is printed there: also what nodes said. So the ServerApp draws a token and tells
it in a line of its own, `fedlora-events TOKEN`, before it asks any node for anything; the log's
first such line counts. Each event is one line, `fedlora-event TOKEN {"n": 7, "kind": "round", …}`:
without the token, which no node is ever told, a line is no event. Events are numbered from 1, so
that a log read again from its start shows nothing twice and a gap in it is seen. Kinds and their
fields are those of `server.kinds`.
"""

import inspect
import json
import re
import secrets
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import Queue
from typing import Any

from fedlora.progress import Observer
from server import delivery, kinds

OPENING = "fedlora-events"
PREFIX = "fedlora-event"
SHOWN = ("begin", "phase", "client", "round", "note")
AHEAD = 4  # parts of files that may wait to be uploaded: as much memory as they take
PATIENCE = 600.0  # seconds in which Flower must take up what was written
LOOK = 0.05  # seconds between looks at whether it did


@dataclass(frozen=True)
class Event:
    """One line: its number in the run, its kind and what it says."""

    number: int
    kind: str
    fields: dict[str, Any]


class Events(Observer):
    """Tells a run on standard output, one line a call, and the round loop's calls to `log` too. To
    be made before any node is asked for anything."""

    def __init__(self) -> None:
        self.log = Observer()
        self._count = 0
        self._uploads = _uploads()
        self._token = secrets.token_hex(16)
        sys.stdout.write(f"\n{OPENING} {self._token}\n")
        sys.stdout.flush()

    def begin(self, rounds: int, start: int) -> None:
        self.log.begin(rounds, start)
        self._tell("begin", rounds=rounds, start=start)

    def phase(self, round: int, name: str, clients: int) -> None:
        self.log.phase(round, name, clients)
        self._tell("phase", round=round, name=name, clients=clients)

    def client(
        self, round: int, phase: str, client: str, loss: float | None, reason: str | None = None
    ) -> None:
        self.log.client(round, phase, client, loss, reason)
        self._tell("client", round=round, phase=phase, client=client, loss=loss, reason=reason)

    def round(self, row: Mapping[str, Any]) -> None:
        self.log.round(row)
        self._tell("round", row=dict(row))

    def note(self, text: str) -> None:
        self.log.note(text)
        self._tell("note", text=text)

    def error(self, text: str) -> None:
        """Why the run ends before its time."""
        self._tell("error", text=text)

    def files(self, folder: Path) -> None:
        """Everything of the run directory that whoever submitted the run is to have."""
        manifest = delivery.manifest(folder)
        self._tell("files", **asdict(manifest))
        for count, part in enumerate(delivery.parts(folder, manifest.files), 1):
            self._tell("file", bulk=True, **part)
            if count % AHEAD == 0:
                self._taken_up()

    def end(self) -> None:
        """The last event; returns when all of them have left this process.

        Flower gives its uploading thread a few seconds when a run ends, and drops what is left.
        That thread takes up lines only after those before have arrived: once it has taken up an
        empty line, every event is there.
        """
        self._tell("end")
        self._taken_up()
        sys.stdout.write("\n")
        self._taken_up()

    def _tell(self, kind: str, *, bulk: bool = False, **fields: Any) -> None:
        self._count += 1
        said = json.dumps({"n": self._count, "kind": kind, **fields})
        line = f"{PREFIX} {self._token} {said}\n"
        if bulk and self._uploads:  # megabytes that the server's own log is better without
            self._uploads.put(line)
        else:
            sys.stdout.write(line)  # in one piece, or another thread's line might come between
            sys.stdout.flush()

    def _taken_up(self) -> None:
        """Wait until Flower has taken up all lines; a link that is down for too long is let be."""
        until = time.monotonic() + PATIENCE
        while self._uploads and not self._uploads.empty() and time.monotonic() < until:
            time.sleep(LOOK)


def _uploads() -> "Queue[str | None] | None":
    """The queue through which Flower uploads what a ServerApp prints, or None where it does not.

    Flower has no public way to wait for it; it is a variable of the function that it puts in place
    of `sys.stdout.write`. Without it only the wait at the end is lost.
    """
    write = sys.stdout.write
    found = inspect.getclosurevars(write).nonlocals if inspect.isfunction(write) else {}
    queue = found.get("log_queue")
    return queue if isinstance(queue, Queue) else None


def opening(line: str) -> str | None:
    """The token that this line tells, if it is one that opens a run's events."""
    found = re.fullmatch(rf"{OPENING} ([0-9a-f]{{32}})\s*", line)
    return found[1] if found else None


def parse(line: str, token: str) -> Event | None:
    """The event in a line of the log, if it has the token, is whole, and says what its kind does.
    Another's text may stand before it: not everything that is printed ends in a newline."""
    _, prefix, text = line.partition(f"{PREFIX} {token} ")
    try:
        fields = json.loads(text) if prefix else {}
        number, kind = fields.pop("n"), fields.pop("kind")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    known = type(number) is int and number > 0 and kinds.fit(kind, fields)
    return Event(number, kind, fields) if known else None


def play(event: Event, observer: Observer) -> None:
    """Tell an observer what an event says; those that are not for it are passed over."""
    if event.kind in SHOWN:
        getattr(observer, event.kind)(**event.fields)
