"""The page's curves: score and loss by round, and score by what it took."""

from collections.abc import Sequence
from dataclasses import replace

from fedlora.page import axes
from fedlora.page.charts import Chart, Curve, chart
from fedlora.page.facts import instructed, private, score_name
from fedlora.page.series import DASH, Series
from fedlora.page.statistics import Spread, against, curve, field, final, total
from fedlora.report import number

MB = 1e6


def of(series: Sequence[Series]) -> list[Chart]:
    """Those panels for which some series has values."""
    made = (_score(series), _loss(series), _bytes(series), _privacy(series))
    return [panel for panel in made if panel]


def _score(series: Sequence[Series]) -> Chart | None:
    name = score_name(series)
    return _by_round("score", f"{name.capitalize()} by round", "score", series, 3, height=320)


def _loss(series: Sequence[Series]) -> Chart | None:
    unit = "nats a token" if instructed(series) else "nats"
    held = any(curve(s, field("test_loss")) for s in series)
    key, name = ("test_loss", "Held-out loss") if held else ("loss", "Training loss")
    return _by_round("loss", f"{name} by round, {unit}", key, series, 4)


def _by_round(
    id: str, title: str, key: str, series: Sequence[Series], digits: int, height: int = 250
) -> Chart | None:
    curves = [Curve(s.label, s.style, curve(s, field(key))) for s in series]
    if not any(c.points for c in curves):
        return None
    x = axes.rounds(max(p.round for c in curves for p in c.points))
    y = _ordinate(curves, height // 45)
    made = chart(id, title, curves, x, y, abscissa="round", digits=digits, height=height)
    rounds = sorted({p.round for c in curves for p in c.points})
    values = [{p.round: p.y for p in c.points} for c in curves]
    table = [[str(n), *(_cell(v.get(n), digits) for v in values)] for n in rounds]
    return replace(made, columns=["round", *(c.label for c in curves)], table=table)


def _cell(spread: Spread | None, digits: int) -> str:
    if spread is None:
        return DASH
    around = f" ({number(spread.low, digits)} to {number(spread.high, digits)})"
    return number(spread.mean, digits) + (around if spread.deviation is not None else "")


def _bytes(series: Sequence[Series]) -> Chart | None:
    """What sends nothing is a level."""
    curves = []
    for s in series:
        points = against(s, total("bytes_up", "bytes_down"), field("score"))
        sent = [replace(p, x=p.x / MB) for p in points if p.x > 0]
        level = points[-1].y.mean if points and not sent else None
        curves.append(Curve(s.label, s.style, sent, level))
    xs = [p.x for c in curves for p in c.points]
    if not xs:
        return None
    wide = max(xs) > 8 * min(xs)
    x = axes.powers(xs) if wide else axes.from_zero(xs)
    return chart(
        "bytes",
        f"{score_name(series).capitalize()} by what was sent",
        curves,
        x,
        _ordinate(curves),
        abscissa="MB, up and down, all clients" + ", log scale" * wide,
    )


def _privacy(series: Sequence[Series]) -> Chart | None:
    """Private series alone: the others have no ε to be compared at."""
    curves = [
        Curve(s.label, s.style, points)
        for s in series
        if (points := against(s, field("epsilon"), field("score")))
    ]
    if not curves:
        return None
    unbounded = [s.label for s in series if private(s) and not final(s, field("epsilon"))]
    return chart(
        "privacy",
        f"{score_name(series).capitalize()} by privacy spent",
        curves,
        axes.from_zero(p.x for c in curves for p in c.points),
        _ordinate(curves),
        abscissa="ε",
        note=f"In the end there is no bound on ε of {', '.join(unbounded)}." if unbounded else "",
    )


def _ordinate(curves: Sequence[Curve], count: int = 5) -> axes.Axis:
    points = [p for c in curves for p in c.points]
    levels = [c.level for c in curves if c.level is not None]
    return axes.linear([*(v for p in points for v in (p.y.low, p.y.high)), *levels], count)
