"""Batches cut into pieces of like length against every way to cut them."""

from itertools import combinations
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

from fedlora.pieces import CORE, MULTIPLE, Costs, costs, cut, fitted, most, padded, started


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


def model(device, layers=16, parameters=1e9):
    """What `costs` asks of a model."""
    made = SimpleNamespace(num_hidden_layers=layers)
    made.get_text_config = lambda: made
    return SimpleNamespace(
        parameters=lambda: iter([SimpleNamespace(device=torch.device(device))]),
        config=made,
        num_parameters=lambda exclude_embeddings: parameters if exclude_embeddings else None,
    )


def test_memory_can_only_make_passes_smaller():
    """Of a CPU's passes, which are small for its caches' sake."""
    assert costs(model("cpu")) == costs(model("cpu"), 10**9) == CORE
    assert costs(model("cpu"), 100).most == most("cpu", 100) == 100
    assert costs(model("cuda"), 10**5).most == 10**5
    assert costs(model("cuda"), 0).most == 1
    assert costs(model("cuda"), rows=3).rows == 3


def test_a_gpu_s_fixed_part_is_what_starting_takes():
    """100 kernels of 10 µs a layer; tokens of 4 operations a weight at 1e14 a second: 16 ms and
    40 µs for 1 billion weights in 16 layers. A larger model is worth cutting into more passes."""
    assert costs(model("cuda")).fixed == 400
    assert started(model("cuda", 32, 7e9)) == 114
    assert started(model("cuda", 6, 1.06e7)) > 10_000


@given(
    some.floats(1e-4, 1), some.floats(1e-7, 1e-3), some.sets(some.integers(1, 10**5), min_size=2)
)
def test_a_fit_finds_what_passes_cost(fixed, each, sizes):
    found = fitted({n: fixed + each * n for n in sizes})
    assert found == pytest.approx((fixed, each), rel=1e-3, abs=1e-5)
