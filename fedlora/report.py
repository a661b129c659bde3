"""What a run says: its table from `metrics.jsonl`.

A row is one object of that file. kind "round": round, score, personalised, loss (of training),
test_loss and personalised_loss (on held-out rows, as the scores beside them), bytes_up, bytes_down,
clients, failed, dropped, seconds; kind "client": round, client, score, test_loss, and more.
A private run's rows have epsilon and delta too: what was spent from the first round to this one.
Scores are fractions, losses nats, bytes those of tensors as sent; what is unknown is null. A null
epsilon is no bound: it is infinite, or not known of every client. Under central privacy rows say
nothing of who took part or how many: no bytes, no clients, failed, dropped or seconds, and there
are none of kind "client". Round 0 is the start, which has a
score with run.baseline.
"""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from fedlora import files, lines
from fedlora.errors import UserError
from fedlora.untrusted import plain

Row = Mapping[str, Any]
UNBOUNDED = "no bound"  # for an ε that is infinite or unknown
WITHHELD = "withheld"  # for what would tell who took part


def load(path: Path) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`. Raises UserError where it is missing or damaged."""
    if not path.is_file():
        raise UserError(f"{path} does not exist: give the directory of a run that finished a round")
    return lines.read(path, lines.METRICS)


def rounds_of(rows: Iterable[Row]) -> list[Row]:
    """The rows that are about a round as a whole."""
    return [row for row in rows if row["kind"] == "round"]


def private(rows: Iterable[Row]) -> bool:
    """Whether these are rows of a private run."""
    return any("epsilon" in row for row in rows)


def withheld(rows: Iterable[Row]) -> bool:
    """Whether these are rows of a run that does not tell who took part in it."""
    return any("clients" not in row for row in rounds_of(rows))


# Numbers as people read them


def amount(bytes: int | None) -> str:
    """Bytes in decimal units with three digits: 1230000 is "1.23 MB"."""
    if bytes is None:
        return "–"
    value = float(bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def number(value: float | None, digits: int = 3) -> str:
    """A score, loss or time, or a dash."""
    return "–" if value is None else f"{value:.{digits}f}"


def spent(epsilon: float | None) -> str:
    """What a private run spent: an ε with two decimals, rounded up, since it is a bound (2.991 is
    "3.00"); or that there is none, as where it is infinite or some client's is unknown."""
    if epsilon is None or not math.isfinite(epsilon):
        return UNBOUNDED
    shown = round(epsilon, 2)
    return f"{shown if shown >= epsilon else shown + 0.01:.2f}"


def upward(delta: float) -> str:
    """A δ with two digits, rounded up: 1.41e-4 is "1.5e-04"."""
    shown = f"{delta:.1e}"
    if float(shown) >= delta:
        return shown
    step = 10.0 ** (int(shown.partition("e")[2]) - 1)
    return f"{float(shown) + step:.1e}"


def perplexity(loss: float | None) -> float | None:
    """exp of nats a token."""
    return None if loss is None else math.exp(loss) if loss < 700 else math.inf


# Tables


def rounds_table(rows: Iterable[Row], language: bool = False) -> Table:
    """One line a round. Columns that only some runs need are there if this one does: the loss on
    held-out rows with its perplexity (a language model's), ε, the training loss (private clients
    report none), bytes and seconds (unless they are withheld), the clients that failed or were
    dropped."""
    rounds = rounds_of(rows)
    troubles = [kind for kind in ("failed", "dropped") if any(row.get(kind) for row in rounds)]
    columns: dict[str, Callable[[Row], str]] = {
        "round": lambda row: str(row["round"]),
        "score": lambda row: number(row.get("score")),
        "personalised": lambda row: number(row.get("personalised")),
        "test loss": lambda row: number(row.get("test_loss"), 4),
        "perplexity": lambda row: number(perplexity(row.get("test_loss")), 2),
        "loss": lambda row: number(row.get("loss"), 4),
        "ε": lambda row: spent(row.get("epsilon")),
        "up": lambda row: amount(row.get("bytes_up")),
        "down": lambda row: amount(row.get("bytes_down")),
        "seconds": lambda row: number(row.get("seconds"), 1),
    }
    if not language:
        del columns["test loss"], columns["perplexity"]
    if not private(rounds):
        del columns["ε"]
    elif all(row.get("loss") is None for row in rounds):
        del columns["loss"]
    if withheld(rounds):
        for name in ("up", "down", "seconds"):
            del columns[name]
    table = plain_table(*columns)
    for kind in troubles:
        table.add_column(kind, overflow="fold")
    for row in rounds:
        cells = [cell(row) for cell in columns.values()]
        table.add_row(*cells, *(_reasons(row.get(kind) or {}) for kind in troubles))
    return table


def show(table: Table, console: Console) -> None:
    """Print a table with every number whole, on a narrow console too: there its lines wrap."""
    wide = console.options.update(width=1000)
    shown = Console(file=console.file, width=Measurement.get(console, wide, table).maximum)
    (console if console.width >= shown.width else shown).print(table)


def _reasons(by_client: Mapping[str, str]) -> Text:
    lines = (f"{plain(client)}: {plain(reason)}" for client, reason in by_client.items())
    return Text("\n".join(lines))


def plain_table(*columns: str | Text) -> Table:
    """An empty table of numbers, with rules above and below its header."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A place to write what is then at `path`: whole, or not at all."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with files.writing(path):
            yield temporary
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
