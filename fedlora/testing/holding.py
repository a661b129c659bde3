"""What has to be so of tensors by name, each with words for where it is not."""

import random
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from fedlora.tensors import Tensors


def hold(kept: bool, otherwise: str) -> None:
    if not kept:
        raise AssertionError(otherwise)


def alike(one: Tensor, other: Tensor) -> bool:
    """Of the same values, where a NaN is like a NaN."""
    same = one.shape == other.shape
    return same and torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)


def same(one: Tensors, other: Tensors, what: str) -> None:
    odd = one.keys() ^ other.keys()
    odd |= {k for k in one.keys() & other.keys() if not alike(one[k], other[k])}
    hold(not odd, f"{what} {', '.join(sorted(odd))}")


def close(ours: Tensors, truth: Tensors) -> None:
    for name, value in truth.items():
        hold(name in ours, f"the state lacks {name}, which is expected")
        try:
            torch.testing.assert_close(ours[name].double(), value.double(), rtol=1e-5, atol=1e-6)
        except AssertionError as e:
            raise AssertionError(f"{name} is not what is expected: {e}") from None


def copies(tensors: Tensors) -> Tensors:
    return {k: t.clone() for k, t in tensors.items()}


def double(tensors: Mapping[str, Tensor]) -> Tensors:
    return {k: t.double() for k, t in tensors.items()}


def generators() -> tuple[list[int], object, str]:
    return torch.get_rng_state().tolist(), random.getstate(), repr(np.random.get_state())
