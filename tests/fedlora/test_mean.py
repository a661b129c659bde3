"""The folded mean against float64."""

import pytest
import torch

from fedlora.errors import MethodError
from fedlora.mean import Mean
from fedlora.streams import stream


def test_mean_is_the_weighted_mean() -> None:
    """Any weights, normalised at the end, a weight of zero included, wherever it comes."""
    xs = [torch.randn(5, 3, generator=stream(0, i)) for i in range(5)]
    weights = [0.0, 2.0, 7.0, 0.0, 1.5]
    mean = Mean()
    for x, w in zip(xs, weights, strict=True):
        mean.add({"x": x}, w)
    truth = sum(w * x.double() for x, w in zip(xs, weights, strict=True)) / sum(weights)
    torch.testing.assert_close(mean.result()["x"].double(), truth, rtol=0, atol=1e-6)
    assert mean.total == sum(weights)


def test_what_all_agree_on_comes_out_to_the_bit() -> None:
    """A tensor that is the same in every update is unchanged, and an update is never written to."""
    x = torch.randn(50, generator=stream(0, "x"))
    before = x.clone()
    mean = Mean()
    for w in (1 / 3, 0.1, 0.7):
        mean.add({"x": x}, w)
    assert torch.equal(mean.result()["x"], before)
    mean.add({"x": x + 1}, 1.0)
    assert torch.equal(x, before)


def test_updates_with_other_names_are_refused() -> None:
    """The names that differ are said."""
    mean = Mean()
    mean.add({"x": torch.ones(1)}, 1.0)
    with pytest.raises(MethodError, match="y"):
        mean.add({"y": torch.ones(1)}, 1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_one_update_is_its_own_mean(dtype: torch.dtype) -> None:
    """In fp32 to the bit, in memory of its own, for scalars, empty tensors and odd layouts."""
    x = torch.randn(4, 6, generator=stream(0, "x")).to(dtype)
    update = {"a": x.T, "b": x[0, 0], "c": x[:0], "d": x[::2, 1:3]}
    mean = Mean()
    mean.add(update, 3.0)
    found = mean.result()
    assert all(torch.equal(found[k], t.float()) for k, t in update.items())
    x.zero_()
    assert found["a"].any()
