"""Axes and charts: everything lies where its value is."""

import math
import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedlora.page import axes
from fedlora.page.charts import GAP, Curve, chart
from fedlora.page.statistics import Point, Spread

VALUES = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=9)


@given(VALUES)
def test_every_value_and_tick_lies_inside(values):
    """On each kind of axis, in the order of the values; there are ticks, and not too many."""
    for axis in (axes.linear(values), axes.from_zero(values), axes.powers(values)):
        places = [axis.place(v) for v in [*sorted(values), *axis.ticks]]
        assert all(-1e-9 <= p <= 1 + 1e-9 for p in places)
        assert places[: len(values)] == sorted(places[: len(values)])
    for axis in (axes.linear(values), axes.from_zero(values)):
        assert 1 <= len(axis.ticks) <= 5
        assert len({axis.text(t) for t in axis.ticks}) == len(axis.ticks)


@given(st.integers(0, 10**4))
def test_rounds_are_whole(last):
    """Ticks at whole rounds, the first at 0."""
    axis = axes.rounds(last)
    assert axis.ticks[0] == 0 and all(t == round(t) for t in axis.ticks)
    assert axis.place(max(last, 1)) == 1 and len(axis.ticks) <= 7


@pytest.mark.parametrize(
    ("axis", "texts"),
    [
        (axes.linear([0.52, 0.83]), ["0.6", "0.7", "0.8"]),
        (axes.linear([0.5, 0.5]), ["0.46", "0.48", "0.50", "0.52", "0.54"]),
        (axes.from_zero([2.99]), ["0", "1", "2", "3"]),
        (axes.powers([1.5, 40]), ["2", "5", "10", "20"]),
        (axes.powers([0.5, 4000]), ["1", "10", "100", "1000"]),
    ],
)
def test_ticks_are_round_numbers(axis, texts):
    """1, 2 and 5 times powers of ten, written with as many decimals."""
    assert [axis.text(t) for t in axis.ticks] == texts


def test_a_log_axis_is_even_in_powers():
    """Equal ratios are equal distances."""
    axis = axes.powers([1, 1000])
    places = [axis.place(v) for v in (1, 10, 100, 1000)]
    assert math.isclose(places[1] - places[0], places[3] - places[2])


def curve_of(label, *heights, around=0.0):
    points = [Point(i, Spread(h, h - around, h + around, around or None), i)
              for i, h in enumerate(heights)]  # fmt: skip
    return Curve(label, "colour-0", points)


def places(path):
    return [(float(x), float(y)) for x, y in re.findall(r"([\d.]+) ([\d.]+)", path)]


def test_a_line_goes_through_its_points_and_a_band_around_them():
    """In percent from the left and from the top, the band along the top and back below."""
    y = axes.Axis(0.0, 1.0, (0.0, 1.0))
    made = chart("c", "C", [curve_of("a", 0.2, 0.6, around=0.1)], axes.rounds(1), y, abscissa="r")
    (line,) = made.lines
    assert places(line.path) == [(0, 80), (100, 40)]
    assert places(line.band) == [(0, 70), (100, 30), (100, 50), (0, 90)]
    assert [(d.x, d.y) for d in line.dots] == [(0, 80), (100, 40)]
    assert line.dots[1].text == "a, round 1: 0.600 (0.500 to 0.700)"
    assert made.summary == "C: a ends at 0.600." and line.tail == ""


def test_one_run_has_no_band_and_a_baseline_is_a_level():
    """Nothing is drawn around what did not vary; what ends early is led to its name."""
    y = axes.Axis(0.0, 1.0, (0.0, 1.0))
    curves = [curve_of("a", 0.2, 0.6), Curve("base", "baseline", [], 0.5), Curve("no", "", [])]
    made = chart("c", "C", curves, axes.rounds(2), y, abscissa="r")
    assert [line.band for line in made.lines] == ["", ""]
    assert made.lines[1].path == "M0 50.00H100"
    assert made.lines[0].tail == "M50.00 40.00H100"
    assert [(mark.text, mark.x) for mark in made.labels] == [("a", 40), ("base", 50)]


@pytest.mark.parametrize("count", [2, 7, 30])
def test_names_keep_apart_and_inside(count):
    """Also where all lines end at one height, and where there are too many for a usual panel."""
    curves = [curve_of(f"m{i}", 0.5, 0.5) for i in range(count)]
    made = chart("c", "C", curves, axes.rounds(1), axes.linear([0, 1]), abscissa="r")
    heights = [mark.y * made.height / 100 for mark in made.labels]
    assert all(b - a >= GAP - 0.01 for a, b in pairwise(heights))
    assert heights[0] >= -0.01 and heights[-1] <= made.height + 0.01
