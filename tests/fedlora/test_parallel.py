"""How rows are shared out to ranks, and what their sums are."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedlora import parallel, pieces
from fedlora.parallel import Ranks

LENGTHS = st.lists(st.integers(1, 40), max_size=12)
COSTS = pieces.Costs(32, 128)


@given(LENGTHS, st.integers(1, 5))
def test_every_row_counts_once(lengths: list[int], size: int) -> None:
    """Over all ranks, which make equally many passes and have rows of about equal length."""
    cut = [Ranks(rank, size).cut(lengths, COSTS) for rank in range(size)]
    assert len({len(passes) for passes in cut}) == 1
    counted = [i for passes in cut for rows, count in passes for i in rows[:count]]
    assert sorted(counted) == list(range(len(lengths)))
    assert all(rows and count in (0, len(rows)) for passes in cut for rows, count in passes)
    tokens = [sum(lengths[i] for rows, count in p for i in rows[:count]) for p in cut]
    assert max(tokens) - min(tokens) <= max(lengths, default=0)


@given(LENGTHS)
def test_one_alone_makes_the_passes_of_always(lengths: list[int]) -> None:
    """The same rows in the same order, so the same bits."""
    passes = [rows for rows, _ in parallel.ALONE.cut(lengths, COSTS)]
    assert passes == pieces.cut(lengths, COSTS)


@given(st.sets(st.integers(0, 99)), st.integers(0, 99), st.integers(1, 5))
def test_a_row_s_rank_depends_on_no_other_row(rows: set[int], more: int, size: int) -> None:
    """As what hides needs it: another row moves none of them."""
    few = Ranks(0, size).by_number(sorted(rows - {more}))
    many = Ranks(0, size).by_number(sorted(rows | {more}))
    for before, after in zip(few, many, strict=True):
        assert set(after) - set(before) <= {more} and set(before) <= set(after)


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> Ranks:
    """The first of three ranks, whose others have twice and three times what this one has."""

    def gathered(each: list[torch.Tensor], own: torch.Tensor) -> None:
        for rank, tensor in enumerate(each, 1):
            tensor.copy_(own * rank)

    monkeypatch.setattr("torch.distributed.all_gather", gathered)
    monkeypatch.setattr(parallel, "SLICE", 4)
    return Ranks(0, 3)


def test_sums_keep_shapes(three: Ranks) -> None:
    """Slices are smaller than a tensor, and tensors smaller than a slice."""
    tensors = [torch.arange(6.0).view(2, 3), torch.ones(()), torch.zeros(0, 2), torch.ones(3)]
    for found, t in zip(three.sum(tensors), tensors, strict=True):
        assert torch.equal(found, 6 * t)


def test_a_gradient_that_nobody_has_stays_none(three: Ranks) -> None:
    """An optimizer leaves such a parameter alone, and would decay another."""
    first, second = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
    first.grad = torch.tensor([1.0, -2.0])
    three.sum_gradients([first, second])
    assert first.grad is not None and torch.equal(first.grad, torch.tensor([6.0, -12.0]))
    assert second.grad is None


def test_one_alone_exchanges_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sums are what it has, and the same objects."""

    def never(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr("torch.distributed.all_gather", never)
    t, p = torch.ones(2), nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    before = p.grad
    assert parallel.ALONE.sum([t])[0] is t
    parallel.ALONE.sum_gradients([p])
    assert parallel.ALONE.least(3) == 3
    with parallel.ALONE.by_turns():
        assert p.grad is before
