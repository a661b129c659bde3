"""The histogram of gradients' norms against slow counts and exact quantiles.

Shapes: norms (rows,), counts (8,): below C/8, then each doubling up to above 8 C.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedlora.privacy import norms
from fedlora.privacy.entropy import normals
from fedlora.streams import stream

CLIPS = st.floats(2**-10, 2**10, width=32)
NORMS = st.lists(st.floats(0, 2**20, width=32), min_size=1, max_size=60)
DRAWS = torch.randn(8, generator=stream(0), dtype=torch.float64)


def released(values, clip, sigma=0.0, steps=1):
    counts = norms.counted(torch.tensor(values), clip)
    return norms.noised(counts, sigma, steps, DRAWS)


@given(NORMS, CLIPS)
def test_each_row_is_in_the_bin_of_its_norm(values, clip):
    """Bins are (C 2^(j-4), C 2^(j-3)]: a norm that is exactly C counts as not above it."""
    expected = [0] * 8
    for value in values:
        expected[sum(value > np.float32(clip) * 2.0**e for e in range(-3, 4))] += 1
    assert norms.counted(torch.tensor(values), clip).tolist() == expected


def test_edges_belong_to_the_bin_below():
    """C itself is not clipped, the next larger number is."""
    above = float(np.nextafter(np.float32(0.7), np.float32(1)))
    found = norms.counted(torch.tensor([0.7, above]), 0.7)
    assert found.tolist() == [0, 0, 0, 1, 1, 0, 0, 0]


def test_a_norm_that_is_no_number_is_a_large_one():
    """NaN and infinity are counted once each, in the last bin; no rows are no counts."""
    found = norms.counted(torch.tensor([math.nan, math.inf, 0.0]), 1.0)
    assert found.tolist() == [1, 0, 0, 0, 0, 0, 0, 2]
    assert norms.counted(torch.zeros(0), 1.0).tolist() == [0] * 8


@given(
    gradient=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=12),
    clip=CLIPS,
    sigma=st.floats(0.1, 50),
)
def test_a_row_adds_at_most_one_to_both_sums_together(gradient, clip, sigma):
    """‖(g/C, e_j)‖ counted in units of each part's own noise is at most 1/σ: one row moves a step's
    release by no more than it would without a histogram, and a row at the bound uses it all."""
    g = torch.tensor(gradient, dtype=torch.float64)
    cut = g * min(1.0, clip / float(g.norm())) if g.norm() > 0 else g
    bin = norms.counted(g.norm().float()[None], clip).double()
    noise = released([0.0], clip, sigma) - released([0.0], clip)
    histogram = float((noise / DRAWS).median())  # the deviation of a count's noise
    whole = torch.cat([cut / clip / norms.stretched(sigma), bin / histogram])
    assert float(whole.norm()) <= 1 / sigma * (1 + 1e-5)
    if g.norm() >= clip:
        assert float(whole.norm()) == pytest.approx(1 / sigma, rel=1e-5)


def test_the_noise_of_counts():
    """Variance σ² steps / b² on every count, independent between counts, mean zero."""
    sigma, steps, draws = 1.7, 5, 4000
    counts = torch.arange(8.0, dtype=torch.float64)
    noise = torch.stack(
        [
            norms.noised(counts, sigma, steps, normals((8,), b"secret", i)) - counts
            for i in range(draws)
        ]
    )
    variance = sigma**2 * steps / 0.2**2
    covariance = torch.cov(noise.T) / variance
    torch.testing.assert_close(covariance, torch.eye(8, dtype=torch.float64), rtol=0, atol=0.1)
    assert float(covariance.diag().mean()) == pytest.approx(1, rel=0.03)
    assert float(noise.mean()) == pytest.approx(0, abs=4 * math.sqrt(variance / 8 / draws))


@given(NORMS, CLIPS)
def test_without_noise_the_share_is_the_share(values, clip):
    """Rows above C among all of them."""
    exact = sum(v > np.float32(clip) for v in values) / len(values)
    found = norms.share_clipped(released(values, clip), len(values))
    assert found == pytest.approx(exact, abs=1e-6)


@given(NORMS, CLIPS)
def test_without_noise_the_median_is_in_the_medians_bin(values, clip):
    """Within a bin's width, a factor of two, of the exact one; outside the edges, at the edge."""
    exact = float(np.percentile(np.float32(values), 50, method="lower"))
    found = norms.median(released(values, clip), clip)
    low, high = clip / 8, clip * 8
    if low < exact < high:
        assert exact / 2 * (1 - 1e-5) <= found <= exact * 2 * (1 + 1e-5)
    else:
        assert found == pytest.approx(low if exact <= low else high, rel=1e-5)


def test_the_median_is_interpolated_on_the_logarithm():
    """For norms that are even on the logarithm it is the median itself."""
    values = torch.logspace(-2.4, 2.1, 4001, base=2.0)
    assert norms.median(norms.counted(values, 1.0), 1.0) == pytest.approx(2**-0.15, rel=2e-3)


def test_the_median_against_its_bin_by_hand():
    """One row below C/8, three in (C/2, C], two above: half of six is two thirds into the bin."""
    counts = torch.tensor([1.0, 0, 0, 3, 2, 0, 0, 0])
    assert norms.median(counts, 3.0) == pytest.approx(3 * 0.5 * 2 ** (2 / 3))


@given(
    counts=st.lists(st.floats(-1e4, 1e4, width=32), min_size=8, max_size=8),
    rows=st.floats(1e-3, 1e5),
    clip=CLIPS,
)
def test_whatever_the_noise_made_of_the_counts(counts, rows, clip):
    """A share stays in [0, 1], and a median among the edges."""
    noisy = torch.tensor(counts)
    assert 0 <= norms.share_clipped(noisy, rows) <= 1
    assert clip / 8 * (1 - 1e-6) <= norms.median(noisy, clip) <= clip * 8 * (1 + 1e-6)


@pytest.mark.parametrize("counts", [torch.zeros(8), -torch.ones(8)])
def test_nothing_counted(counts):
    """No rows, or noise that ate them all: the smallest answers, and no division by zero."""
    assert norms.share_clipped(counts, 10) == 0
    assert norms.median(counts, 2.0) == 0.25
