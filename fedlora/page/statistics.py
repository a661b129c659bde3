"""Means over a series' runs, with what surrounds them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from fedlora.page.collect import Run
from fedlora.page.series import Series

ByRound = Mapping[int, float]


@dataclass(frozen=True)
class Spread:
    """Some runs' values of one thing.

    Attributes:
        deviation: that of a sample (n - 1), None of a single value.
    """

    mean: float
    low: float
    high: float
    deviation: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        deviation = stdev(values) if len(values) > 1 else None
        return cls(fmean(values), min(values), max(values), deviation)


@dataclass(frozen=True)
class Point:
    """A place on a curve: an abscissa, and the values there."""

    x: float
    y: Spread
    round: int


def by_round(series: Series, of: Callable[[Run], ByRound]) -> dict[int, Spread]:
    """Over the rounds in which every run of the series has a value."""
    found = [of(run) for run in series.runs]
    rounds = [n for n in found[0] if n <= series.last and all(n in values for values in found)]
    return {n: Spread.of([values[n] for values in found]) for n in rounds}


def curve(series: Series, of: Callable[[Run], ByRound]) -> list[Point]:
    """Values by round."""
    return [Point(n, y, n) for n, y in by_round(series, of).items()]


def against(
    series: Series, abscissa: Callable[[Run], ByRound], of: Callable[[Run], ByRound]
) -> list[Point]:
    """Values by the runs' mean of something else at the same rounds."""
    xs = by_round(series, abscissa)
    return [Point(xs[n].mean, y, n) for n, y in by_round(series, of).items() if n in xs]


def final(series: Series, of: Callable[[Run], ByRound]) -> Spread | None:
    """Values after the last round that all runs have finished; None where one is unknown."""
    return by_round(series, of).get(series.last)


def field(key: str) -> Callable[[Run], ByRound]:
    """A field of the rounds' rows."""
    return lambda run: run.values(key)


def total(*keys: str) -> Callable[[Run], ByRound]:
    """Fields of the rounds' rows, added up until each round's end; nothing if one is withheld."""

    def of(run: Run) -> ByRound:
        if any(key not in row for row in run.rounds for key in keys):
            return {}
        so_far, sums = 0.0, {}
        for row in run.rounds:
            so_far += sum(row.get(key) or 0 for key in keys)
            sums[row["round"]] = so_far
        return sums

    return of
