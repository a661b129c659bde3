"""Charts as plain geometry: places in percent of a panel, from its left and its top.

The page draws lines in a panel that stretches and texts that do not, so one geometry serves a wide
screen, a phone and paper.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from fedlora.page.axes import Axis
from fedlora.page.statistics import Point
from fedlora.pictures import spread

GAP = 17  # pixels between the middles of two labels
DOTS = 25  # most places of a line that are marked


@dataclass(frozen=True)
class Curve:
    """What is to be drawn: a name, classes of the style sheet, and points.

    Attributes:
        level: a height that holds all along the panel; drawn where there are no points.
    """

    label: str
    style: str
    points: Sequence[Point]
    level: float | None = None


@dataclass(frozen=True)
class Mark:
    """A place, and a text: a tick's, a label's, or what a dot says when it is pointed at."""

    x: float
    y: float
    text: str
    style: str = ""


@dataclass(frozen=True)
class Line:
    """A drawn curve: `path`, `band` and `tail` are SVG path data in percent; a tail leads from a
    line that ends within the panel to its label."""

    style: str
    path: str
    band: str
    tail: str
    dots: Sequence[Mark]


@dataclass(frozen=True)
class Chart:
    """One panel.

    Attributes:
        id: unlike any other on the page.
        summary: what a reader who does not see it is told.
        labels: names at the right edge; x is the height at which the line itself ends.
        width: of the longest label, in characters.
        columns, table: the same numbers, for reading.
    """

    id: str
    title: str
    note: str
    summary: str
    abscissa: str
    height: int
    x_ticks: Sequence[Mark]
    y_ticks: Sequence[Mark]
    lines: Sequence[Line]
    labels: Sequence[Mark]
    width: int = 0
    columns: Sequence[str] = ()
    table: Sequence[Sequence[str]] = field(default_factory=list)


def chart(
    id: str,
    title: str,
    curves: Sequence[Curve],
    x: Axis,
    y: Axis,
    *,
    abscissa: str,
    note: str = "",
    digits: int = 3,
    height: int = 250,
    named: bool = True,
) -> Chart:
    """A panel of curves with their bands.

    Args:
        digits: decimals of the ordinate in texts.
        named: whether lines have labels at the right edge.
    """
    drawn = [c for c in curves if c.points or c.level is not None]
    height = max(height, GAP * (len(drawn) + 1)) if named else height
    return Chart(
        id=id,
        title=title,
        note=note,
        summary=_summary(title, drawn, digits),
        abscissa=abscissa,
        height=height,
        x_ticks=[Mark(100 * x.place(t), 100, x.text(t)) for t in x.ticks],
        y_ticks=[Mark(0, 100 - 100 * y.place(t), y.text(t)) for t in y.ticks],
        lines=[_line(c, x, y, digits) for c in drawn],
        labels=_labels(drawn, y, height) if named else [],
        width=max((len(c.label) for c in drawn), default=0) if named else 0,
    )


def _line(curve: Curve, x: Axis, y: Axis, digits: int) -> Line:
    places = [(100 * x.place(p.x), p) for p in curve.points]
    if not places:
        assert curve.level is not None
        height = 100 - 100 * y.place(curve.level)
        return Line(curve.style, f"M0 {height:.2f}H100", "", "", [])

    def trace(heights: Iterable[tuple[float, float]]) -> str:
        return "L".join(f"{a:.2f} {100 - 100 * y.place(b):.2f}" for a, b in heights)

    path = "M" + trace((a, p.y.mean) for a, p in places)
    band = ""
    if any(p.y.low < p.y.high for _, p in places):
        above = trace((a, p.y.high) for a, p in places)
        band = f"M{above}L{trace((a, p.y.low) for a, p in reversed(places))}Z"
    end, height = places[-1][0], 100 - 100 * y.place(places[-1][1].y.mean)
    tail = f"M{end:.2f} {height:.2f}H100" if end < 99.9 else ""
    marked = places if len(places) <= DOTS else places[-1:]
    dots = [Mark(a, 100 - 100 * y.place(p.y.mean), said(curve.label, p, digits)) for a, p in marked]
    return Line(curve.style, path, band, tail, dots)


def said(label: str, point: Point, digits: int) -> str:
    """A point in words."""
    y = point.y
    around = f" ({y.low:.{digits}f} to {y.high:.{digits}f})" if y.deviation is not None else ""
    return f"{label}, round {point.round}: {y.mean:.{digits}f}{around}"


def _summary(title: str, curves: Sequence[Curve], digits: int) -> str:
    ends = [
        f"{c.label} ends at {c.points[-1].y.mean if c.points else c.level:.{digits}f}"
        for c in curves
    ]
    return f"{title}: {'; '.join(ends)}." if ends else title


def _labels(curves: Sequence[Curve], y: Axis, height: int) -> list[Mark]:
    """Each name as near as may be to the height where its line ends, none over another."""
    ends = sorted(
        (100 - 100 * y.place(c.points[-1].y.mean if c.points else c.level or 0.0), c.label, c.style)
        for c in curves
    )
    heights = spread([end for end, _, _ in ends], 100 * GAP / height, 0.0, 100.0)
    return [
        Mark(end, moved, label, style)
        for (end, label, style), moved in zip(ends, heights, strict=True)
    ]
