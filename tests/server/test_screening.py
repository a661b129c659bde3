"""An update is refused for what is wrong with it, and for nothing else."""

import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from torch import Tensor

from server.screening import LARGEST, fault

SHAPES = some.lists(some.integers(0, 4), max_size=3).map(tuple)
DTYPES = some.sampled_from([torch.float32, torch.float16, torch.bfloat16])
HUGE = 3e38


@some.composite
def tensors(draw: some.DrawFn, values: some.SearchStrategy[float]) -> Tensor:
    """Any shape, scalars and empty ones too."""
    shape, dtype = draw(SHAPES), draw(DTYPES)
    count = math.prod(shape)
    drawn = draw(some.lists(values, min_size=count, max_size=count))
    return torch.tensor(drawn, dtype=torch.float64).to(dtype).reshape(shape)


@given(
    tensors(some.sampled_from([0.0, -1.0, 6e4, HUGE, -HUGE, math.inf, -math.inf, math.nan])),
    some.integers(0, 2),
)
def test_what_is_not_finite_is_refused(tensor: Tensor, place: int) -> None:
    """Wherever it is and whatever is around it; and what is finite, but so large that sums and
    products of it would not be."""
    update = {name: torch.ones(2) for name in "abc"}
    update["abc"[place]] = tensor
    expected = {k: torch.zeros_like(t) for k, t in update.items()}
    values = tensor.double().flatten().tolist()
    found = fault(update, expected, None)
    if not all(math.isfinite(x) for x in values):
        assert found == f"{'abc'[place]} is not finite"
    elif any(abs(x) > LARGEST for x in values):
        assert found.startswith(f"{'abc'[place]} has an entry of ")
    else:
        assert found == ""


@given(tensors(some.floats(-100, 100)), some.floats(0, 300))
def test_the_norm_is_that_of_the_whole_change(tensor: Tensor, bound: float) -> None:
    """Of all tensors together, from what was expected; its truth is summed value by value."""
    update = {"a": tensor, "b": torch.tensor([3.0, 4.0])}
    expected = {"a": torch.full(tensor.shape, 0.5), "b": torch.zeros(2)}
    square = sum((x - 0.5) ** 2 for x in tensor.double().flatten().tolist()) + 25
    if abs(math.sqrt(square) - bound) > 1e-4 * bound:
        assert bool(fault(update, expected, bound)) == (math.sqrt(square) > bound)
    assert fault(update, expected, None) == ""


def test_a_norm_whose_squares_overflow_is_a_norm() -> None:
    """It is compared with the bound, not lost as an infinity."""
    update, expected = {"a": torch.full((4,), 1e30)}, {"a": torch.zeros(4)}
    assert "norm" not in fault(update, expected, 1e31)
    assert "2e+30, above run.norm_bound = 1e+30" in fault(update, expected, 1e30)
    assert "norm" in fault({"a": torch.full((4,), HUGE)}, {"a": torch.full((4,), -HUGE)}, 1e38)


@pytest.mark.parametrize(
    ("update", "says"),
    [
        ({"a": torch.ones(2)}, "b"),
        ({"a": torch.ones(2), "b": torch.ones(3), "c": torch.ones(1)}, "c"),
        ({"a": torch.ones(2), "b": torch.ones(1, 3)}, r"b is \(1, 3\), not \(3,\)"),
    ],
)
def test_other_names_and_shapes_are_refused(update: dict[str, Tensor], says: str) -> None:
    """Shapes that would broadcast too; what differs is named."""
    assert re.search(says, fault(update, {"a": torch.ones(2), "b": torch.ones(3)}, None))
