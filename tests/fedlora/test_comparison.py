"""Statistics over seeds, against formulas written out."""

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedlora import comparison
from fedlora.comparison import Difference, Result

SCORES = {"fedit": [0.81, 0.78, 0.84, 0.80], "ffa": [0.79, 0.70, 0.83, 0.71]}


def result(method: str, seed: int, score: float | None, **changes: Any) -> Result:
    made = Result(method, seed, score, 0.5, None, None, 100, 1000, 2000, 3.0)
    return replace(made, **changes)


def results(scores: dict[str, list[float | None]]) -> list[Result]:
    """Seeds from 0."""
    return [result(m, seed, x) for m, xs in scores.items() for seed, x in enumerate(xs)]


def below(t: float, degrees: int) -> float:
    """P(|T| < t) of Student's distribution: its density, integrated by Simpson's rule."""
    n, steps = degrees, 20_000
    scale = math.gamma((n + 1) / 2) / (math.sqrt(n * math.pi) * math.gamma(n / 2))
    h = t / steps
    heights = [(1 + (i * h) ** 2 / n) ** (-(n + 1) / 2) for i in range(steps + 1)]
    whole = heights[0] + 4 * sum(heights[1::2]) + 2 * sum(heights[2:-1:2]) + heights[-1]
    return 2 * scale * whole * h / 3


def test_means_and_sample_deviations() -> None:
    """sqrt(Σ (x - m)² / (n - 1)), of every measure; a single seed has no deviation."""
    runs = [result("fedit", i, x, seconds=3.0 + i) for i, x in enumerate(SCORES["fedit"])]
    (summary,) = comparison.summaries(runs)
    for name, values in {"score": SCORES["fedit"], "seconds": [3.0, 4.0, 5.0, 6.0]}.items():
        m = sum(values) / 4
        spread = summary.measures[name]
        assert spread and spread.mean == pytest.approx(m)
        assert spread.deviation == pytest.approx(math.sqrt(sum((x - m) ** 2 for x in values) / 3))
    (single,) = comparison.summaries(runs[:1])
    assert single.measures["score"] == comparison.Spread(0.81, None)


def test_a_mean_that_lacks_a_seed_is_unknown() -> None:
    """A run without a score is not passed over, as the others' mean would flatter the method; the
    method is not tested either."""
    runs = results({"fedit": [0.8, 0.9], "ffa": [0.8, None]})
    assert comparison.summaries(runs)[1].measures["score"] is None
    assert comparison.differences(runs) == [Difference("ffa", 2, None)]


def test_epsilon_is_the_largest_of_the_seeds() -> None:
    """It bounds them all; where one is unknown, or infinite, so is the bound."""
    runs = [result("fedit", i, 0.5, epsilon=e) for i, e in enumerate((1.0, 3.0, 2.0))]
    assert comparison.summaries(runs)[0].epsilon == 3.0
    runs.append(result("fedit", 3, 0.5))
    assert comparison.summaries(runs)[0].epsilon is None


@pytest.mark.parametrize("seeds", [2, 3, 4])
def test_a_paired_test_of_each_method_against_the_first(seeds: int) -> None:
    """t = d̄ / (s_d / √n); p is what Student's density leaves outside ±t, and the interval is what
    holds 95% of it."""
    scores = {m: xs[:seeds] for m, xs in SCORES.items()}
    (found,) = comparison.differences(results(scores))
    d = [b - a for a, b in zip(*scores.values(), strict=True)]
    m = sum(d) / seeds
    error = math.sqrt(sum((x - m) ** 2 for x in d) / (seeds - 1) / seeds)
    assert (found.method, found.seeds) == ("ffa", seeds)
    assert found.mean == pytest.approx(m)
    assert found.p == pytest.approx(1 - below(abs(m) / error, seeds - 1), abs=1e-7)
    assert found.low is not None and found.high is not None
    assert (found.low + found.high) / 2 == pytest.approx(m)
    assert below((found.high - m) / error, seeds - 1) == pytest.approx(0.95, abs=1e-7)
    assert found.adjusted == found.p


def test_seeds_are_paired_by_their_number() -> None:
    """Not by their place; a seed that one of the two was not run with is left out."""
    runs = [result("fedit", s, x) for s, x in ((0, 0.1), (1, 0.5), (2, 0.9), (7, 0.0))]
    other = [result("ffa", s, x) for s, x in ((2, 0.8), (0, 0.3), (1, 0.5))]
    (found,) = comparison.differences([*runs, *other])
    assert found.seeds == 3 and found.mean == pytest.approx((0.2 + 0.0 - 0.1) / 3)


@pytest.mark.parametrize("other", [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]])
def test_differences_without_a_spread_are_not_tested(other: list[float | None]) -> None:
    """The same difference in every seed, zero or not, and though 0.4 - 0.1 is not 0.6 - 0.3 in
    floating point, has a mean and no p: it is neither 0 nor 1. The remarks say so."""
    runs = results({"fedit": [0.1, 0.2, 0.3], "ffa": other})
    (found,) = comparison.differences(runs)
    assert found.mean == pytest.approx((other[0] or 0) - 0.1)
    assert (found.low, found.high, found.p, found.adjusted) == (None, None, None, None)
    assert any("the same difference" in line and "ffa" in line for line in comparison.remarks(runs))


@given(st.lists(st.floats(0, 1), max_size=6))
def test_holm_is_the_closed_test_of_bonferroni(ps: list[float]) -> None:
    """By the definition: a hypothesis' p is the largest, over all sets of hypotheses with it, of
    Bonferroni's p of that set, |S| · min p."""
    sets = [[i for i in range(len(ps)) if mask >> i & 1] for mask in range(1, 2 ** len(ps))]
    slow = [
        max(min(1.0, len(s) * min(ps[j] for j in s)) for s in sets if i in s)
        for i in range(len(ps))
    ]
    assert comparison.holm(ps) == pytest.approx(slow)


def test_the_remarks_say_what_the_numbers_can_bear() -> None:
    """Nothing is tested on one seed; two show little, and how little is Cauchy's quantile, as
    Student's distribution with one degree of freedom is his; methods that are not done are named.
    """
    (one,) = comparison.remarks(results({"fedit": [0.5], "ffa": [0.6]}))
    assert "one seed: no deviation and no test" in one
    two = comparison.remarks(results({"fedit": [0.5, 0.6], "ffa": [0.6, 0.8]}))
    assert f"{math.tan(math.pi / 2 * 0.95):.1f} times its standard error" in two[-1]
    assert "differences of score to fedit" in two[1] and "Holm" in two[1]
    part = comparison.remarks(results({"fedit": [0.5, 0.6], "ffa": [0.6]}))
    assert part[1] == "not all seeds are done of: ffa"
    assert comparison.remarks([]) == []
