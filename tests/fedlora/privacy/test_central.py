"""Central noise and clipping against the equation in float64, written out by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedlora.privacy.central import clipped, noised
from fedlora.privacy.entropy import insecure, normals
from fedlora.streams import stream

SHAPES = {"x.A": (3, 5), "x.B": (7, 3), "head.bias": (2,)}


def tensors(*path, size=1.0):
    return {
        k: size * torch.randn(shape, generator=stream(0, *path, k)) for k, shape in SHAPES.items()
    }


def flat(given):
    return torch.cat([given[k].double().flatten() for k in SHAPES])


@given(size=st.floats(1e-3, 1e3), bound=st.floats(1e-2, 1e2), seed=st.integers(0, 99))
def test_a_change_is_cut_to_the_bound_in_its_own_direction(size, bound, seed):
    """All tensors together by one factor min(1, C/‖Δ‖), to what fp32 can hold of x + Δ."""
    start, change = tensors(seed, "start"), tensors(seed, "change", size=size)
    update = {k: start[k] + change[k] for k in SHAPES}
    found = clipped(update, start, bound)
    exact = flat(update) - flat(start)
    exact *= min(1.0, bound / float(exact.norm()))
    rounding = 1e-7 * float(flat(start).norm() + bound)
    moved = flat(found) - flat(start)
    torch.testing.assert_close(moved, exact, rtol=1e-6, atol=rounding)
    assert float(moved.norm()) <= bound + rounding
    assert all(found[k].dtype == torch.float32 for k in SHAPES)


def test_a_small_change_keeps_its_bits():
    """A change within the bound is not touched, also where x dwarfs it; nor is none at all."""
    start = tensors("start", size=1e3)
    update = {k: t * 1e-6 for k, t in tensors("update").items()}
    for given_ in (update, start):
        found = clipped(given_, start, 1e6)
        assert all(torch.equal(found[k], given_[k]) for k in SHAPES)


def test_the_arguments_are_left_alone():
    """Neither the update nor the start is written to."""
    start, update = tensors("start"), tensors("update", size=9.0)
    before = [t.clone() for t in (*start.values(), *update.values())]
    clipped(update, start, 0.1)
    noised(start, update, 3, 2.0, 1.0, b"secret")
    assert all(map(torch.equal, before, (*start.values(), *update.values())))


@pytest.mark.parametrize("count", [1, 3, 8])
def test_the_new_state_is_the_equation(count):
    """x + (Σ Δ_i + σC ξ) / (qK) in float64, ξ a stream of its own for each name, with a
    denominator that does not depend on who came."""
    start, updates = tensors("start"), [tensors("update", i) for i in range(count)]
    mean = {k: torch.stack([u[k] for u in updates]).mean(0) for k in SHAPES}
    expected, deviation = 4.5, 0.8
    found = noised(start, mean, count, expected, deviation, b"secret")
    for k in SHAPES:
        total = sum(u[k].double() - start[k].double() for u in updates)
        noise = normals(SHAPES[k], b"secret", "noise", k)
        exact = start[k].double() + (total + deviation * noise) / expected
        torch.testing.assert_close(found[k].double(), exact, rtol=1e-6, atol=1e-6)
        assert found[k].dtype == torch.float32
    assert found.keys() == SHAPES.keys()


def test_a_round_that_nobody_came_to_is_noise():
    """Every shared part moves all the same, or silence would tell that nobody was there."""
    start = tensors("start")
    found = noised(start, {}, 0, 2.0, 0.5, b"secret")
    for k in SHAPES:
        noise = normals(SHAPES[k], b"secret", "noise", k)
        exact = start[k].double() + 0.25 * noise
        torch.testing.assert_close(found[k].double(), exact, rtol=1e-6, atol=1e-7)


def test_noise_has_the_deviation_promised():
    """σC/(qK) on every coordinate, independent between them."""
    start = {k: torch.zeros(shape) for k, shape in SHAPES.items()}
    draws = torch.stack([flat(noised(start, start, 2, 5.0, 3.0, insecure(i))) for i in range(3000)])
    covariance = torch.cov(draws.T) / (3.0 / 5.0) ** 2
    torch.testing.assert_close(
        covariance, torch.eye(len(covariance), dtype=torch.float64), rtol=0, atol=0.15
    )
    assert float(covariance.diag().mean()) == pytest.approx(1, rel=0.02)
    assert float(draws.mean()) == pytest.approx(0, abs=4 * 0.6 / math.sqrt(draws.numel()))


def test_one_client_more_moves_the_state_by_its_bound():
    """‖with − without‖ ≤ C/(qK) under the same noise: what the noise is measured against."""
    start, bound, expected = tensors("start"), 0.3, 4.0
    updates = [clipped(tensors(i, size=5.0), start, bound) for i in range(4)]
    found = []
    for present in (updates, updates[:-1]):
        mean = {k: torch.stack([u[k] for u in present]).mean(0) for k in SHAPES}
        found.append(flat(noised(start, mean, len(present), expected, 1.0, b"secret")))
    distance = float((found[0] - found[1]).norm())
    assert distance == pytest.approx(bound / expected, rel=1e-5)
