"""Pictures of a run and of a comparison, from the rows of `metrics.jsonl` (see fedlora.report)."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from fedlora.report import Row, private, rounds_of, whole
from fedlora.untrusted import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, apart for every kind of colour vision; their yellow is too pale on white.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
LETTERS = 40  # of a name beside a line
INK, PALE = "#333333", "#9A9A9A"

Label = tuple[float, str, str]  # the height where a line ends, its name and colour


def curves(rows: Sequence[Row], path: Path) -> None:
    """A PNG of one run: scores over rounds, and beside them the loss, or what a private run spent.
    Each client's own are thin lines, named where there are few."""
    rounds, clients = rounds_of(rows), [row for row in rows if row["kind"] == "client"]
    spends = any(row.get("epsilon") is not None for row in clients)  # else the server alone does
    thin = " (thin: each client's own)"
    second = "training loss"
    if private(rounds):
        unbounded = any(row.get("epsilon") is None for row in rounds)
        second = "ε spent by round" + thin * spends + ", no bound where it ends" * unbounded
    figure, (scores, beside) = _figure("score by round" + thin, second)
    labels = _own(scores, clients, "score")
    labels += _line(scores, rounds, "score", COLOURS[0], MARKERS[0])
    labels += _line(scores, rounds, "personalised", COLOURS[1], MARKERS[1])
    _label(scores, labels)
    if private(rounds):
        labels = _line(beside, rounds, "epsilon", INK, "o", "largest")
        labels += _own(beside, clients, "epsilon")  # on top: the largest is someone's own
        _label(beside, labels if spends else [])
    else:
        _line(beside, rounds, "loss", INK, "o")
    for axes in (scores, beside):
        _by_round(axes, max([1, *(row["round"] for row in rounds)]))
    _save(figure, path)


def comparison_picture(curves_by_method: Mapping[str, Sequence[Sequence[Row]]], path: Path) -> None:
    """A PNG of a comparison: score by round, and by megabytes sent up and down (log scale).

    `curves_by_method` gives the rows of each method's or baseline's runs, one a seed: their mean is
    a line, in a band from the least to the most. One that sends nothing is a dashed level in the
    second panel, one with a single round in both; one without a score is left out.
    """
    figure, (by_round, by_bytes) = _figure("score by round", "score by MB sent, all clients")
    styles = itertools.cycle(zip(COLOURS, MARKERS, strict=True))
    levels = itertools.cycle(((INK, "--"), (PALE, "--"), (INK, ":"), (PALE, ":")))
    labels: list[Label] = []
    sent: list[float] = []
    last = 1
    for method, runs in curves_by_method.items():
        band = _band(runs)
        if not band:
            continue
        xs, means, mbs, lows, highs = zip(*band, strict=True)
        last = max(last, *xs)
        several = len(runs) > 1
        costs = any(mb > 0 for mb in mbs)
        colour, mark = next(styles if costs else levels)
        labels.append((means[-1], method, colour))
        if several:
            by_round.fill_between(xs, lows, highs, color=colour, alpha=0.15, linewidth=0)
        if costs:
            first = next(i for i, mb in enumerate(mbs) if mb > 0)
            sent += mbs[first:]
            by_round.plot(xs, means, color=colour, marker=mark, markersize=4)
            by_bytes.plot(mbs[first:], means[first:], color=colour, marker=mark, markersize=4)
            if several:
                x, low, high = (values[first:] for values in (mbs, lows, highs))
                by_bytes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
            continue
        by_round.plot(xs, means, color=colour, linestyle=mark)
        for axes in [by_bytes] if len(xs) > 1 else [by_bytes, by_round]:
            axes.axhline(means[-1], color=colour, linestyle=mark)
    _by_round(by_round, last)
    _by_megabytes(by_bytes, sent)
    by_bytes.set_ylim(by_round.get_ylim())
    _label(by_bytes, labels)
    _save(figure, path)


def _own(axes: "Axes", rows: Iterable[Row], key: str) -> list[Label]:
    """A thin line for each client: coloured and named where the colours suffice, else pale."""
    by_client: dict[str, list[Row]] = {}
    for row in rows:
        by_client.setdefault(row["client"], []).append(row)
    few = sorted(by_client) if len(by_client) <= len(COLOURS) - 2 else []
    colours = dict(zip(few, COLOURS[2:], strict=False))
    labels = []
    for client, own in sorted(by_client.items()):
        xs, ys = _points(own, key)
        axes.plot(xs, ys, color=colours.get(client, PALE), linewidth=0.8)
        if ys and client in colours:
            labels.append((ys[-1], client, colours[client]))
    return labels


def _line(
    axes: "Axes", rows: Iterable[Row], key: str, colour: str, marker: str, name: str = ""
) -> list[Label]:
    """The federation's own line."""
    xs, ys = _points(rows, key)
    axes.plot(xs, ys, color=colour, marker=marker, markersize=4, linewidth=2)
    return [(ys[-1], name or key, colour)] if ys else []


def _points(rows: Iterable[Row], key: str) -> tuple[list[int], list[float]]:
    """Rounds and values where there is a value."""
    known = [(row["round"], row[key]) for row in rows if row.get(key) is not None]
    return [x for x, _ in known], [y for _, y in known]


def _band(runs: Sequence[Sequence[Row]]) -> list[tuple[int, float, float, float, float]]:
    """Round, mean score, mean megabytes sent until then, least and largest score, over the runs;
    of rounds that have a score in each of them."""
    by_run = [{number: (score, mb) for number, score, mb in _cost(rounds_of(r))} for r in runs]
    band = []
    for number in sorted(set.intersection(*map(set, by_run))):
        scores, mbs = zip(*(run[number] for run in by_run), strict=True)
        band.append((number, fmean(scores), fmean(mbs), min(scores), max(scores)))
    return band


def _cost(rounds: Iterable[Row]) -> Iterator[tuple[int, float, float]]:
    """Each round that has a score, that score, and megabytes sent until the round's end."""
    total = 0
    for row in rounds:
        total += (row.get("bytes_up") or 0) + (row.get("bytes_down") or 0)
        if row.get("score") is not None:
            yield row["round"], row["score"], total / 1e6


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


def _label(axes: "Axes", labels: Iterable[Label]) -> None:
    """Names at the right edge, each as near as may be to the height where its line ends."""
    labels = sorted(labels)
    low, high = axes.get_ylim()
    heights = spread([y for y, _, _ in labels], 0.055 * (high - low), low, high)
    beside = axes.get_yaxis_transform()  # x in widths of the panel, y in the data's units
    for y, (_, text, colour) in zip(heights, labels, strict=True):
        label = axes.text(
            1.02, y, plain(text, LETTERS), color=colour, fontsize=9, va="center", transform=beside
        )
        label.set_parse_math(False)  # a client may be called $\frac$


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
    with whole(path) as temporary:
        figure.savefig(temporary, format="png")
