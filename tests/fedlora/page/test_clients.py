"""How each series serves its clients."""

import statistics as slow

import pytest

from fedlora.page import clients
from fedlora.page.series import group
from tests.fedlora.page.made import made, scored, told

ONE = {"a": [0.5, 0.2], "b": [0.7, 0.9], "c": [0.6, 0.5], "d": [0.1, 0.6]}
TWO = {"a": [0.4, 0.3], "b": [0.8, 0.7], "c": [0.2, 0.8]}


@pytest.fixture
def series(tmp_path):
    """One method with two seeds, of which the second had a client less."""
    runs = [
        made(tmp_path, f"s{seed}", [*scored(0.5, 0.6, 0.7), *told(scores)], run__seed=seed)
        for seed, scores in enumerate((ONE, TWO))
    ]
    return group(runs)


def test_the_worst_the_median_and_the_best_are_means_over_seeds(series):
    """After the last round; a client is named where it is that one with every seed."""
    (found,) = clients.of(series).ranges
    last = [[own[-1] for own in scores.values()] for scores in (ONE, TWO)]
    for stroke, of in ((found.worst, min), (found.median, slow.median), (found.best, max)):
        assert stroke.text == f"{slow.fmean(map(of, last)):.3f}"
    assert (found.worst.client, found.best.client) == ("a", "")
    assert found.worst.x < found.median.x < found.best.x
    assert len(found.dots) == 7 and found.dots[0].text == "a, seed 0: 0.200"
    assert found.clients == "3.5"


def test_by_round_the_median_lies_between_the_others(series):
    """Means over seeds in every round that clients were scored in."""
    points = clients.by_round(series[0])
    assert [p.round for p in points] == [1, 2]
    for point in points:
        own = [[s[point.round - 1] for s in scores.values()] for scores in (ONE, TWO)]
        assert point.y.low == pytest.approx(slow.fmean(map(min, own)))
        assert point.y.mean == pytest.approx(slow.fmean(map(slow.median, own)))
        assert point.y.high == pytest.approx(slow.fmean(map(max, own)))


def test_every_client_has_a_line_of_its_own(series):
    """Its mean over the seeds that it took part in."""
    table = clients.of(series).table
    cells = {name: cell.text for name, _, (cell,) in table.rows}
    assert cells == {"a": "0.250", "b": "0.800", "c": "0.650", "d": "0.600"}


@pytest.mark.parametrize("scores", [{}, {"pooled": [0.5]}, {"a": [None], "b": [None]}])
def test_where_there_is_nothing_to_compare(tmp_path, scores):
    """Nobody told a score, or there is one client alone."""
    run = made(tmp_path, "mine", [*scored(0.5, 0.6), *told(scores)])
    assert clients.of(group([run])) is None
