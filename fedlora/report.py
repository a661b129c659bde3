"""What a run and a comparison look like: tables, pictures and a CSV from `metrics.jsonl`.

A row is one object of that file. kind "round": round, score, personalised, loss, bytes_up,
bytes_down, clients, failed, dropped, seconds; kind "client": round, client, score, and more.
Scores are fractions, losses nats, bytes those of tensors as sent; what is unknown is null.
Round 0 is the evaluation of the start.
"""

import csv
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

from fedlora.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]

# Okabe and Ito's colours, apart for every kind of colour vision; their yellow is too pale on white.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
INK, PALE = "#333333", "#9A9A9A"


@dataclass(frozen=True)
class Result:
    """One line of a comparison: a method or a baseline. Scores are fractions at the last round;
    bytes and seconds are those of the whole run (a baseline sends nothing)."""

    method: str
    score: float | None
    personalised: float | None
    trained_parameters: int
    bytes_up: int
    bytes_down: int
    seconds: float


def load(path: Path) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`. Raises UserError where it is missing or damaged."""
    if not path.is_file():
        raise UserError(f"{path} does not exist: give the directory of a run that finished a round")
    rows = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise UserError(
                f"{path}, line {number} is not JSON ({error.msg}): remove the line, "
                "or resume the run, which writes the file anew"
            ) from None
    return rows


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


# Tables


def rounds_table(rows: Iterable[Row]) -> Table:
    """One line a round; the clients that failed or were dropped have a column if there are any."""
    rounds = _rounds(rows)
    troubles = [kind for kind in ("failed", "dropped") if any(row.get(kind) for row in rounds)]
    table = _table("round", "score", "personalised", "loss", "up", "down", "seconds")
    for kind in troubles:
        table.add_column(kind, overflow="fold")
    for row in rounds:
        table.add_row(
            str(row["round"]),
            number(row.get("score")),
            number(row.get("personalised")),
            number(row.get("loss"), 4),
            amount(row.get("bytes_up")),
            amount(row.get("bytes_down")),
            number(row.get("seconds"), 1),
            *(_reasons(row.get(kind) or {}) for kind in troubles),
        )
    return table


def comparison_table(results: Iterable[Result]) -> Table:
    """One line a method."""
    table = _table("method", "score", "personalised", "parameters", "up", "down", "seconds")
    table.columns[0].justify = "left"
    for r in results:
        table.add_row(
            Text(r.method),
            number(r.score),
            number(r.personalised),
            f"{r.trained_parameters:,}",
            amount(r.bytes_up),
            amount(r.bytes_down),
            number(r.seconds, 1),
        )
    return table


def comparison_csv(results: Iterable[Result], path: Path) -> None:
    """The same as CSV, one column a field of `Result`; what is unknown is empty."""
    with _whole(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Result)])
        writer.writeheader()
        writer.writerows(asdict(result) for result in results)


def _reasons(by_client: Mapping[str, str]) -> Text:
    return Text("\n".join(f"{client}: {reason}" for client, reason in by_client.items()))


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


# Pictures


def curves(rows: Sequence[Row], path: Path) -> None:
    """A PNG of one run: scores over rounds, with each client's own as thin lines,
    named where there are few, and the loss beside them."""
    figure, (scores, loss) = _figure("score by round (thin: each client's own)", "training loss")
    rounds, labels = _rounds(rows), []
    clients = sorted({row["client"] for row in rows if row["kind"] == "client"})
    few = clients if len(clients) <= len(COLOURS) - 2 else []
    named = dict(zip(few, COLOURS[2:], strict=False))
    for client in clients:
        own = [row for row in rows if row["kind"] == "client" and row["client"] == client]
        xs, ys = _points(own, "score")
        scores.plot(xs, ys, color=named.get(client, PALE), linewidth=0.8)
        if ys and client in named:
            labels.append((ys[-1], client, named[client]))
    for key, colour, marker in zip(("score", "personalised"), COLOURS, MARKERS, strict=False):
        xs, ys = _points(rounds, key)
        scores.plot(xs, ys, color=colour, marker=marker, markersize=4, linewidth=2)
        if ys:
            labels.append((ys[-1], key, colour))
    loss.plot(*_points(rounds, "loss"), color=INK, marker="o", markersize=4, linewidth=2)
    for axes in (scores, loss):
        _by_round(axes, max([1, *(row["round"] for row in rounds)]))
    _label(scores, labels)
    _save(figure, path)


def comparison_picture(curves_by_method: Mapping[str, Sequence[Row]], path: Path) -> None:
    """A PNG of a comparison: score by round, and by megabytes sent up and down (log scale).

    `curves_by_method` gives each method's or baseline's rows. One that sends nothing is a dashed
    level in the second panel, one with a single round in both; one without a score is left out.
    """
    figure, (by_round, by_bytes) = _figure("score by round", "score by MB sent, all clients")
    styles = itertools.cycle(zip(COLOURS, MARKERS, strict=True))
    levels = itertools.cycle(((INK, "--"), (PALE, "--"), (INK, ":"), (PALE, ":")))
    labels, sent, last = [], [], 1
    for method, rows in curves_by_method.items():
        rounds = _rounds(rows)
        xs, ys = _points(rounds, "score")
        if not ys:
            continue
        cost = [(mb, y) for mb, y in _cost(rounds) if mb > 0]
        last = max(last, *xs)
        colour, mark = next(styles if cost else levels)
        labels.append((ys[-1], method, colour))
        if cost:
            sent += [mb for mb, _ in cost]
            by_round.plot(xs, ys, color=colour, marker=mark, markersize=4)
            by_bytes.plot(*zip(*cost, strict=True), color=colour, marker=mark, markersize=4)
            continue
        by_round.plot(xs, ys, color=colour, linestyle=mark)
        for axes in [by_bytes] if len(ys) > 1 else [by_bytes, by_round]:
            axes.axhline(ys[-1], color=colour, linestyle=mark)
    _by_round(by_round, last)
    _by_megabytes(by_bytes, sent)
    by_bytes.set_ylim(by_round.get_ylim())
    _label(by_bytes, labels)
    _save(figure, path)


def _rounds(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row["kind"] == "round"]


def _points(rows: Iterable[Row], key: str) -> tuple[list[int], list[float]]:
    """Rounds and values where there is a value."""
    known = [(row["round"], row[key]) for row in rows if row.get(key) is not None]
    return [x for x, _ in known], [y for _, y in known]


def _cost(rounds: Iterable[Row]) -> Iterator[tuple[float, float]]:
    """Megabytes sent until the end of each round that has a score, and that score."""
    total = 0
    for row in rounds:
        total += (row.get("bytes_up") or 0) + (row.get("bytes_down") or 0)
        if row.get("score") is not None:
            yield total / 1e6, row["score"]


def _figure(*titles: str) -> tuple["Figure", Sequence["Axes"]]:
    # Here, so that a command which draws nothing does not wait for matplotlib; and without pyplot,
    # whose figures are global state.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(titles))
    for axes, title in zip(panels, titles, strict=True):
        axes.set_title(title, loc="left", fontsize=11, color=INK)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#E6E6E6", linewidth=0.8)
        axes.set_axisbelow(True)
    return figure, panels


def _by_round(axes: "Axes", last: int) -> None:
    axes.set_xlabel("round")
    axes.set_xlim(-0.04 * last, 1.04 * last)
    axes.locator_params(axis="x", integer=True)


def _by_megabytes(axes: "Axes", sent: Sequence[float]) -> None:
    axes.set_xlabel("MB, up and down")
    if not sent:  # a log axis needs a positive value
        return
    axes.set_xscale("log", subs=(2, 5))  # 1, 2, 5, 10: few enough to be named
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")


def _label(axes: "Axes", labels: Iterable[tuple[float, str, str]]) -> None:
    """Names at the right edge, each as near as may be to the height where its line ends."""
    labels = sorted(labels)
    low, high = axes.get_ylim()
    heights = spread([y for y, _, _ in labels], 0.055 * (high - low), low, high)
    beside = axes.get_yaxis_transform()  # x in widths of the panel, y in the data's units
    for y, (_, text, colour) in zip(heights, labels, strict=True):
        axes.text(1.02, y, text, color=colour, fontsize=9, va="center", transform=beside)


def spread(heights: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Ascending heights moved as little as possible, in squares, to lie `gap` apart in [low, high].

    With z_i = y_i - i gap this is isotonic regression: neighbours in the wrong order are pooled.
    """
    pools: list[list[float]] = []
    for i, height in enumerate(heights):
        pool = [height - i * gap]
        while pools and fmean(pools[-1]) > fmean(pool):
            pool = pools.pop() + pool
        pools.append(pool)
    apart = [fmean(pool) for pool in pools for _ in pool]
    top = high - (len(heights) - 1) * gap
    return [max(low, min(z, top)) + i * gap for i, z in enumerate(apart)]


def _save(figure: "Figure", path: Path) -> None:
    with _whole(path) as temporary:
        figure.savefig(temporary, format="png")


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A place to write what is then at `path`: whole, or not at all."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
