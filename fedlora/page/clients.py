"""How a federation serves each of its clients: the worst, the median and the best score."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median

from fedlora.page import axes, charts
from fedlora.page.charts import Chart, Mark
from fedlora.page.collect import Run, known
from fedlora.page.facts import Cell, Table
from fedlora.page.series import DASH, Series
from fedlora.page.statistics import Point, Spread
from fedlora.report import number

PANELS = 12  # most series that each get a panel of their own


@dataclass(frozen=True)
class Stroke:
    """A mean over runs: its place in percent, and the client whose it is in every run, if any."""

    x: float
    text: str
    client: str


@dataclass(frozen=True)
class Range:
    """A series' clients after its last round.

    Attributes:
        clients: how many there are a run; where runs differ, their mean.
        dots: every client of every run.
    """

    label: str
    style: str
    clients: str
    worst: Stroke
    median: Stroke
    best: Stroke
    dots: Sequence[Mark]


@dataclass(frozen=True)
class Clients:
    """The page's part on clients: a line a series, and how that came about."""

    table: Table
    ticks: Sequence[Mark]
    ranges: Sequence[Range]
    panels: Sequence[Chart]


def scores(run: Run, round: int) -> dict[str, float]:
    """Each client's score of its own model on its own held-out rows, where it told one."""
    rows = (row for row in run.clients if row["round"] == round)
    return {row["client"]: row["score"] for row in rows if known(row.get("score"))}


def of(series: Sequence[Series]) -> Clients | None:
    """None where no clients told scores, as under central privacy, or there is one alone."""
    told = [s for s in series if all(len(scores(run, s.last)) > 1 for run in s.runs)]
    if not told:
        return None
    values = [v for s in told for run in s.runs for v in scores(run, s.last).values()]
    axis = axes.linear(values)
    return Clients(
        table=_table(told),
        ticks=[Mark(100 * axis.place(t), 100, axis.text(t)) for t in axis.ticks],
        ranges=[_range(s, axis) for s in told],
        panels=_panels(told) if len(told) <= PANELS else [],
    )


def _range(series: Series, axis: axes.Axis) -> Range:
    found = [scores(run, series.last) for run in series.runs]

    def stroke(value: float, clients: Sequence[str] = ()) -> Stroke:
        client = clients[0] if len(set(clients)) == 1 else ""
        return Stroke(100 * axis.place(value), number(value), client)

    worst = fmean(min(own.values()) for own in found)
    best = fmean(max(own.values()) for own in found)
    return Range(
        label=series.label,
        style=series.style,
        clients=f"{fmean(map(len, found)):.3g}",
        worst=stroke(worst, [min(own, key=own.__getitem__) for own in found]),
        median=stroke(fmean(median(own.values()) for own in found)),
        best=stroke(best, [max(own, key=own.__getitem__) for own in found]),
        dots=[
            Mark(100 * axis.place(v), 50, f"{client}, seed {run.config['run.seed']}: {number(v)}")
            for run, own in zip(series.runs, found, strict=True)
            for client, v in own.items()
        ],
    )


def _table(series: Sequence[Series]) -> Table:
    """Every client's score: its mean over the runs that it took part in."""
    found = [[scores(run, s.last) for run in s.runs] for s in series]
    names = sorted({client for runs in found for own in runs for client in own})
    rows = []
    for name in names:
        own = [[scores[name] for scores in runs if name in scores] for runs in found]
        cells = [Cell(number(fmean(values)) if values else DASH) for values in own]
        rows.append((name, "", cells))
    return Table([s.label for s in series], rows)


def _panels(series: Sequence[Series]) -> list[Chart]:
    """Over rounds: the median, and a band from the worst to the best, as means over runs."""
    curves = [charts.Curve(s.label, s.style, by_round(s)) for s in series]
    drawn = [c for c in curves if len(c.points) > 1]
    if not drawn:
        return []
    y = axes.linear((v for c in drawn for p in c.points for v in (p.y.low, p.y.high)), count=4)
    x = axes.rounds(max(p.round for c in drawn for p in c.points), count=5)
    return [
        charts.chart(f"clients-{i}", c.label, [c], x, y, abscissa="round", height=120, named=False)
        for i, c in enumerate(drawn)
    ]


def by_round(series: Series) -> list[Point]:
    """The median client in each round, between the worst and the best: means over the runs."""
    points = []
    told = {row["round"] for run in series.runs for row in run.clients}
    for round in sorted(n for n in told if n <= series.last):
        found = [list(scores(run, round).values()) for run in series.runs]
        if all(found):
            low, high = fmean(map(min, found)), fmean(map(max, found))
            middle = fmean(map(median, found))
            points.append(Point(round, Spread(middle, low, high, 0.0), round))
    return points
