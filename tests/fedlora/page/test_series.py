"""Runs that differ in their seed alone are one series; means and bands over them."""

import statistics as slow

from fedlora.page import statistics
from fedlora.page.series import differing, group
from fedlora.page.statistics import Spread, against, by_round, curve, field, final, total
from tests.fedlora.page.made import made, scored


def test_seeds_make_a_series_and_settings_another(tmp_path):
    """A seed, a name, a folder and how a machine went about it make no difference; any other
    setting does, and names the series where the method does not. Baselines come last."""
    runs = [
        made(tmp_path, "a1", scored(0.5), run__seed=1, strategy__name="local"),
        made(tmp_path, "a0", scored(0.5), run__seed=0, simulation__copies=3),
        made(tmp_path / "x", "b", scored(0.5), run__seed=3, run__track=[]),
        made(tmp_path, "c", scored(0.5), train__lr=0.5),
        made(tmp_path, "d", scored(0.5), strategy__name="ffa"),
    ]
    series = group(runs)
    assert [(s.label, [r.name for r in s.runs]) for s in series] == [
        ("fedit, lr 0.001", ["a0", "b"]),
        ("fedit, lr 0.5", ["c"]),
        ("ffa", ["d"]),
        ("local", ["a1"]),
    ]
    assert [s.baseline for s in series] == [False, False, False, True]
    assert len({s.style for s in series}) == 4


def test_what_is_not_set_is_not_said(tmp_path):
    """A private run beside one that is not."""
    private = made(tmp_path, "b", scored(0.5), privacy__epsilon=3.0)
    series = group([made(tmp_path, "a", scored(0.5)), private])
    assert [s.label for s in series] == ["fedit", "fedit, epsilon 3"]


def test_many_differences_are_a_number(tmp_path):
    """A label stays short, and no two are the same."""
    other = {"train__lr": 0.5, "train__steps": 3, "adapter__rank": 2}
    series = group([made(tmp_path, "a", scored(0.5)), made(tmp_path, "b", scored(0.5), **other)])
    assert [s.label for s in series] == ["fedit (1)", "fedit (2)"]


def test_a_setting_that_one_method_lacks_is_null(tmp_path):
    """It is no difference to a method that has it and left it open."""
    runs = [made(tmp_path, m, scored(0.5), strategy__name=m) for m in ("fedit", "fedex")]
    assert "strategy.name" in differing(runs) and "strategy.truncate" not in differing(runs)


def test_means_and_bands_are_those_of_the_values(tmp_path):
    """Against Python's own, at every round that all the runs have a value for."""
    scores = [[0.5, 0.61, 0.7, 0.9], [0.5, 0.72, 0.65], [0.5, None, 0.8, 0.95]]
    runs = [made(tmp_path, f"s{i}", scored(*s), run__seed=i) for i, s in enumerate(scores)]
    (series,) = group(runs)
    found = by_round(series, field("score"))
    assert series.last == 2 and list(found) == [0, 2]
    last = [0.7, 0.65, 0.8]
    assert found[2] == Spread(slow.fmean(last), min(last), max(last), slow.stdev(last))
    assert final(series, field("score")) == found[2]
    assert [(p.x, p.round) for p in curve(series, field("score"))] == [(0, 0), (2, 2)]


def test_one_seed_has_no_deviation(tmp_path):
    """And where the last value is unknown there is no final one."""
    (series,) = group([made(tmp_path, "a", scored(0.5, 0.6, None))])
    assert by_round(series, field("score"))[1] == Spread(0.6, 0.6, 0.6, None)
    assert final(series, field("score")) is None


def test_cost_adds_up_both_ways(tmp_path):
    """The abscissa is the mean of what was sent until then, rounds without a score included."""
    one = made(tmp_path, "a", scored(0.5, None, 0.7))
    two = made(tmp_path, "b", scored(0.5, None, 0.9, bytes_x=0), run__seed=1)
    (series,) = group([one, two])
    points = against(series, total("bytes_up", "bytes_down"), field("score"))
    assert [(p.x, p.round) for p in points] == [(0, 0), (6e6, 2)]
    assert statistics.final(series, total("bytes_up")) == Spread(2e6, 2e6, 2e6, 0.0)
