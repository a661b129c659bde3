"""Batches cut into pieces of like length against every way to cut them."""

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as some

from fedlora.pieces import CORE, MULTIPLE, Costs, costs, cut, padded


def cost(pieces, lengths, prices):
    """Fixed parts and padded tokens, as the file says."""
    return sum(prices.fixed + len(p) * padded(max(lengths[i] for i in p)) for p in pieces)


@given(some.lists(some.integers(0, 60), max_size=40), some.integers(0, 300), some.integers(1, 400))
def test_every_row_once_and_none_too_large(lengths, fixed, most):
    """A piece has at most so many padded tokens, or one row; short rows come first."""
    pieces = cut(lengths, Costs(fixed, most))
    assert sorted(i for p in pieces for i in p) == list(range(len(lengths)))
    flat = [lengths[i] for p in pieces for i in p]
    assert flat == sorted(flat)
    for p in pieces:
        assert len(p) == 1 or len(p) * padded(max(lengths[i] for i in p)) <= most


@given(some.lists(some.integers(1, 60), min_size=1, max_size=9), some.integers(0, 300))
def test_no_other_cut_is_cheaper(lengths, fixed):
    """Where no piece is too large, as over all cuts of the sorted rows."""
    prices = Costs(fixed, 10**6)
    order = sorted(lengths)
    ways = [
        [list(range(a, b)) for a, b in zip((0, *at), (*at, len(order)), strict=True)]
        for k in range(len(order))
        for at in combinations(range(1, len(order)), k)
    ]
    least = min(cost(way, order, prices) for way in ways)
    assert cost(cut(lengths, prices), lengths, prices) == least


def test_rows_of_one_length_stay_together():
    assert cut([5] * 10, CORE) == [list(range(10))]
    assert cut([], CORE) == []


@given(some.integers(0, 1000))
def test_padding_is_to_a_multiple(length):
    assert padded(length) % MULTIPLE == 0
    assert length <= padded(length) < length + MULTIPLE


def test_memory_can_only_make_passes_smaller():
    """Of a CPU's passes, which are small for its caches' sake."""
    assert costs("cpu") == costs("cpu", 10**9) == CORE
    assert costs("cpu", 100).most == 100
    assert costs("cuda", 10**5).most == 10**5
    assert costs("cuda", 0).most == 1
