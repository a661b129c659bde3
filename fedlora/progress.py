"""A run as it happens: bars on a terminal, plain lines elsewhere, the same lines in a log file."""

import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich import progress
from rich.console import Console

from fedlora import files
from fedlora.report import amount, number
from fedlora.untrusted import LONG, plain


class Observer:
    """What the round loop tells whoever watches; does nothing by itself.

    `phase` is one of "start", "train", "aggregate", "evaluate".
    """

    def begin(self, rounds: int, start: int) -> None:
        """The run has `rounds` rounds, of which `start` are done (0 unless it was resumed)."""

    def phase(self, round: int, name: str, clients: int) -> None:
        """A phase begins, in which `clients` clients are asked (0: the server works alone)."""

    def client(
        self, round: int, phase: str, client: str, loss: float | None, reason: str | None = None
    ) -> None:
        """A client is done; `reason` says why it failed or was dropped, if so."""

    def round(self, row: Mapping[str, Any]) -> None:
        """A round was committed: its metrics, as in `metrics.jsonl`."""

    def note(self, text: str) -> None:
        """Something that a person should know."""


class Progress(Observer):
    """Shows a run on `console`. A context manager: bars are taken down and the log closed at exit.

    A terminal gets a bar over rounds and one over the phase's clients, and in lines above them
    what went wrong; anything else a line a round too. `log` (appended to) gets every line, dated
    unless how long a round takes is a secret.
    """

    def __init__(self, rounds: int, console: Console, log: Path | None, dated: bool = True) -> None:
        self.rounds, self.dated = rounds, dated
        self.console = console
        self.live = console.is_terminal and not console.is_dumb_terminal
        self.file = log.open("a", encoding="utf-8", buffering=1) if log else None
        # No markup: a client may be called [bold].
        self.bars = progress.Progress(
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeElapsedColumn(),
            progress.TextColumn("{task.fields[last]}", markup=False),
            console=console,
            transient=True,
            disable=not self.live,
        )
        self.over_rounds = self.bars.add_task("rounds", total=rounds, last="")
        self.over_clients = self.bars.add_task("clients", total=None, visible=False, last="")

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bars.stop()
        if self.file:
            self.file.close()

    def begin(self, rounds: int, start: int) -> None:
        self.rounds = rounds
        self.bars.update(self.over_rounds, total=rounds, completed=start)
        if start:
            self._say(f"resumes after round {start} of {rounds}")

    def phase(self, round: int, name: str, clients: int) -> None:
        self.bars.reset(
            self.over_clients, description=plain(name), total=clients, visible=clients > 0, last=""
        )

    def client(
        self, round: int, phase: str, client: str, loss: float | None, reason: str | None = None
    ) -> None:
        last = plain(client) + ("" if loss is None else f": loss {number(loss, 4)}")
        self.bars.update(self.over_clients, advance=1, last=last)
        if reason:
            who = f"{plain(phase)}: {plain(client)}"
            self._say(f"round {round}/{self.rounds}, {who} left out: {reason}")

    def round(self, row: Mapping[str, Any]) -> None:
        scores = ", ".join(
            f"{name} {number(row[name], digits)}"
            for name, digits in (("loss", 4), ("score", 3), ("personalised", 3))
            if row.get(name) is not None
        )
        self.bars.update(self.over_rounds, completed=row["round"], last=scores)
        self.bars.update(self.over_clients, visible=False)
        cost = ""
        if "bytes_up" in row:  # else it is withheld
            cost = (
                f"; {amount(row.get('bytes_up'))} up, {amount(row.get('bytes_down'))} down, "
                f"{number(row.get('seconds'), 1)} s"
            )
        said = f"round {row['round']}/{self.rounds}: {scores or 'nothing measured'}{cost}"
        self._say(said, shown=not self.live)

    def note(self, text: str) -> None:
        self._say(text)

    def _say(self, line: str, shown: bool = True) -> None:
        line = plain(line, LONG)
        if shown:
            self.console.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)
        if self.file:
            now = time.strftime("%Y-%m-%d %H:%M:%S ") if self.dated else ""
            with files.writing(Path(self.file.name)):
                self.file.write(f"{now}{line}\n")
