"""ε is never below what composing the privacy loss itself gives, for adding and for removing a row.

The loss of a Poisson-sampled Gaussian step, L = ln p/q with p = (1−q)N(0,σ²) + qN(1,σ²) and q =
N(0,σ²), is put on a grid, rounded down, and T steps are convolved by FFT (Koskela, Jälkö, Honkela
2020, arXiv:1906.03049). Rounding down, and tails that are dropped, can only make ε smaller: what
comes out is a lower bound of the true ε, made without Rényi orders and without Opacus.
"""

import math
from itertools import product

import numpy as np
import pytest
from scipy.stats import norm

from fedlora.privacy.accounting import epsilon

POINTS = 2**16
CASES = [
    (sigma, q, steps, delta)
    for sigma, q, steps, delta in product(
        (0.6, 1.0, 3.0), (0.01, 0.1, 0.5, 1.0), (1, 400), (1e-3, 1e-6)
    )
    if q * math.sqrt(steps) / sigma < 12
]


def below(values: np.ndarray, sigma: float, q: float, removed: bool) -> np.ndarray:
    """P(L ≤ value): L under p where the row is removed, −L under N(0, σ²) where it is added."""
    sign = 1.0 if removed else -1.0
    with np.errstate(divide="ignore", invalid="ignore"):
        x = sigma**2 * np.log((np.exp(sign * values) - (1 - q)) / q) + 0.5
    x = np.where(np.isnan(x), -np.inf, x)
    if removed:
        return (1 - q) * norm.cdf(x / sigma) + q * norm.cdf((x - 1) / sigma)
    return norm.sf(x / sigma)


def least(sigma: float, q: float, steps: int, delta: float, removed: bool) -> float:
    """A lower bound of ε at δ."""
    width = 12 * q * math.sqrt(steps) / sigma + 20 * max(1.0, 1 / sigma**2)
    grid = np.linspace(-width, width, POINTS, endpoint=False)
    mass = np.diff(below(np.append(grid, width), sigma, q, removed))
    composed = np.fft.irfft(np.fft.rfft(np.fft.ifftshift(mass)) ** steps, POINTS)
    composed = np.clip(np.fft.fftshift(composed), 0, None)

    def missed(target: float) -> float:
        above = grid > target
        return float((composed[above] * -np.expm1(target - grid[above])).sum())

    low, high = 0.0, width
    for _ in range(24):
        middle = (low + high) / 2
        low, high = (middle, high) if missed(middle) > delta else (low, middle)
    return low


@pytest.mark.parametrize(("sigma", "q", "steps", "delta"), CASES)
def test_epsilon_is_never_understated(sigma: float, q: float, steps: int, delta: float) -> None:
    """And not twice what is true where there is something to lose."""
    found = epsilon([(sigma, q, steps)], delta)
    true = max(least(sigma, q, steps, delta, removed) for removed in (True, False))
    assert true - 1e-3 <= found
    if true > 0.5:
        assert found <= 2 * true
