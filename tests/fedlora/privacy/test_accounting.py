"""ε is an upper bound, as tight as promised, and σ is solved for it."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants import RDPAccountant
from scipy.special import comb, log_ndtr, ndtr

from fedlora.errors import UserError
from fedlora.privacy.accounting import Mechanism, epsilon, merged, noise_multiplier

KINDS = ("rdp", "prv")


@pytest.fixture(autouse=True)
def _no_warnings():
    """Nothing that Opacus warns of may reach the user."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def exact(sigma, steps, delta):
    """ε of the unsampled mechanism: Gaussian with μ = sqrt(T)/σ (Balle and Wang 2018, theorem 8),
    by bisection of δ(ε) = Φ(μ/2 - ε/μ) - e^ε Φ(-μ/2 - ε/μ)."""
    mu, low, high = math.sqrt(steps) / sigma, 0.0, 1e6
    for _ in range(200):
        e = (low + high) / 2
        d = ndtr(mu / 2 - e / mu) - math.exp(e + log_ndtr(-mu / 2 - e / mu))
        low, high = (e, high) if d > delta else (low, e)
    return high


def slow(q, sigma, steps, delta):
    """An upper bound by whole orders, in exact binomials (Mironov et al. 2019, section 3.3), and
    the classic conversion ε = ρ + ln(1/δ) / (α - 1)."""
    bounds = []
    for a in range(2, 21):
        terms = (
            comb(a, k, exact=True)
            * (1 - q) ** (a - k)
            * q**k
            * math.exp(k * (k - 1) / 2 / sigma**2)
            for k in range(a + 1)
        )
        rho = math.log(math.fsum(terms)) / (a - 1)
        bounds.append(steps * rho + math.log(1 / delta) / (a - 1))
    return min(bounds)


def composed(q, sigma, steps, delta):
    """ε of removing and of adding a row: histograms of the privacy loss over a fine grid of
    outputs, composed by FFT, δ(ε) = E[(1 - e^(ε - loss))+] bisected."""
    x = np.linspace(-12 * sigma, 12 * sigma + 1, 400_001)
    without = np.diff(ndtr(x / sigma))
    taken = (1 - q) * without + q * np.diff(ndtr((x - 1) / sigma))
    loss = np.log1p(q * np.expm1(((x[1:] + x[:-1]) - 1) / (2 * sigma**2)))
    n, dt = 2**18, 2e-4
    t = (np.arange(n) - n // 2) * dt
    found = []
    for mass, losses in ((taken, loss), (without, -loss)):
        at = np.rint(losses / dt).astype(int) + n // 2
        inside = (at >= 0) & (at < n)
        one = np.fft.rfft(np.fft.ifftshift(np.bincount(at[inside], mass[inside], n)))
        many = np.fft.fftshift(np.fft.irfft(one**steps, n))
        low, high = 0.0, 20.0
        for _ in range(40):
            e = (low + high) / 2
            over = t > e
            d = (many[over] * -np.expm1(e - t[over])).sum()
            low, high = (e, high) if d > delta else (low, e)
        found.append(high)
    return found


def test_the_published_value():
    """q = .1, σ = 1, 100 steps, δ = 1e-5: 7.90 by Rényi orders, 7.06 numerically."""
    history = [(1.0, 0.1, 100)]
    assert epsilon(history, 1e-5) == pytest.approx(7.90, abs=0.01)
    assert epsilon(history, 1e-5, "prv") == pytest.approx(7.06, rel=0.005)


def test_nothing_spent_and_no_noise():
    """An empty history costs nothing, and so do rows never taken; a step without noise is inf."""
    for kind in KINDS:
        assert epsilon([], 1e-5, kind) == 0.0
        assert epsilon([(1.0, 0.1, 0), (1.0, 0.0, 9)], 1e-5, kind) == 0.0
        assert epsilon([(1.0, 0.1, 5), (0.0, 0.1, 1)], 1e-5, kind) == math.inf
        assert epsilon([(1e-200, 0.1, 1)], 1e-5, kind) == math.inf


@given(
    q=st.floats(1e-4, 0.9),
    sigma=st.floats(0.8, 20),
    steps=st.integers(1, 2000),
    delta=st.floats(1e-9, 1e-2),
)
@settings(max_examples=20)
def test_never_above_the_slow_bound(q, sigma, steps, delta):
    """At least as good as exact sums with the classic conversion; and what Opacus finds by trying
    many orders at once, we find by stepping towards the best, to half a percent."""
    found, bound = epsilon([(sigma, q, steps)], delta), slow(q, sigma, steps, delta)
    opacus = RDPAccountant()
    opacus.history = [(sigma, q, steps)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = opacus.get_epsilon(delta)
    assert found <= bound + 1e-9
    assert found <= max(0.0, theirs) * 1.005
    if 1 < theirs < 50:  # where their orders reach
        assert found >= 0.995 * theirs


@given(
    sigma=st.floats(0.2, 300),
    steps=st.integers(1, 20000),
    delta=st.sampled_from([1e-7, 1e-5, 1e-2]),
)
@settings(max_examples=40)
def test_at_least_what_is_true_without_sampling(sigma, steps, delta):
    """At q = 1 the exact ε is known: Rényi orders are above it, and at most half above."""
    true, found = exact(sigma, steps, delta), epsilon([(sigma, 1.0, steps)], delta)
    assert found >= true
    if true > 0.03:
        assert found <= 1.5 * true


@pytest.mark.parametrize(
    ("target", "delta"), [(0.1, 1e-5), (1.0, 1e-3), (1.0, 1e-8), (8.0, 1e-5), (50.0, 1e-8)]
)
def test_numerical_is_close_to_the_truth(target, delta):
    """At q = 1, from few steps to many: never below, 1.5 % above at most."""
    for steps in (1, 100, 2000):
        low, high = 1e-2, 1e6
        for _ in range(100):
            sigma = math.sqrt(low * high)
            low, high = (sigma, high) if exact(sigma, steps, delta) > target else (low, sigma)
        found = epsilon([(high, 1.0, steps)], delta, "prv")
        assert target <= found <= 1.015 * target, steps


@pytest.mark.parametrize(("q", "sigma", "steps"), [(0.1, 1.0, 100), (0.5, 2.0, 8), (0.02, 0.8, 50)])
def test_numerical_with_sampling(q, sigma, steps):
    """Above the loss of removing a row and of adding one, at most 1 % above the larger."""
    removed, added = composed(q, sigma, steps, 1e-5)
    found = epsilon([(sigma, q, steps)], 1e-5, "prv")
    assert added < removed <= found <= 1.01 * removed
    assert found <= epsilon([(sigma, q, steps)], 1e-5)


@given(
    q=st.floats(1e-3, 1),
    sigma=st.floats(0.5, 50),
    steps=st.integers(1, 10_000),
    delta=st.floats(1e-9, 1e-2),
)
@settings(max_examples=15)
def test_more_costs_more(q, sigma, steps, delta):
    """ε grows with steps, q, 1/σ and 1/δ."""
    found = epsilon([(sigma, q, steps)], delta)
    for history, d in [
        ([(sigma, q, steps + 1)], delta),
        ([(sigma, min(1.0, 1.1 * q), steps)], delta),
        ([(sigma / 1.1, q, steps)], delta),
        ([(sigma, q, steps)], delta / 2),
        ([(sigma, q, steps), (100.0, 0.01, 1)], delta),
    ]:
        assert epsilon(history, d) >= found * (1 - 1e-12)


def test_however_it_is_written_down():
    """The same steps in many entries, or mixed with others, cost the same to the bit."""
    split = [(1.0, 0.1, 30), (2.0, 0.1, 5), (1.0, 0.1, 70), (2.0, 0.1, 5)]
    assert merged([*split[:1], *split[:1], (1.0, 0.1, 0)]) == [(1.0, 0.1, 60)]
    for kind in KINDS:
        assert epsilon(split, 1e-5, kind) == epsilon([(2, 0.1, 10), [1, 0.1, 100]], 1e-5, kind)
        assert epsilon(split, 1e-5, kind) > epsilon([(1.0, 0.1, 100)], 1e-5, kind)


@given(
    target=st.floats(math.log(0.1), math.log(50)).map(math.exp),
    n=st.floats(math.log(50), math.log(1e5)).map(lambda x: round(math.exp(x))),
    batch=st.integers(1, 64),
    steps=st.integers(1, 20_000),
)
@settings(max_examples=15)
def test_the_noise_reaches_the_target_from_below(target, n, batch, steps):
    """For any budget, rows, batches and steps: at most the target, at least .99 of it, so that no
    budget is wasted and none overdrawn."""
    delta, q = 1 / (2 * n), min(1.0, batch / n)
    sigma = noise_multiplier(target, delta, q, steps)
    assert 0.99 * target <= epsilon([(sigma, q, steps)], delta) <= target


@pytest.mark.parametrize(("target", "q", "steps"), [(0.3, 0.05, 100), (3.0, 0.1, 150), (30, 1, 20)])
def test_the_noise_for_the_numerical_accountant(target, q, steps):
    """As for Rényi orders, with less noise."""
    sigma = noise_multiplier(target, 1e-5, q, steps, "prv")
    assert 0.99 * target <= epsilon([(sigma, q, steps)], 1e-5, "prv") <= target
    assert sigma < noise_multiplier(target, 1e-5, q, steps)


def test_targets_out_of_reach():
    """A mistake the user can mend, said before anything is tried: too small an ε, or too large."""
    for kind in KINDS:
        with pytest.raises(UserError, match=r"privacy.epsilon = 0.001 cannot be certified.*larger"):
            noise_multiplier(0.001, 1e-6, 0.01, 100, kind)
    with pytest.raises(UserError, match="almost no noise"):
        noise_multiplier(1e12, 1e-6, 0.01, 100)


@pytest.mark.parametrize(
    ("history", "delta", "why"),
    [
        ([(7000.0, 1.0, 10**6)], 1e-11, "delta = 1e-11 is too small"),  # Opacus: rounding errors
        ([(0.02, 1.0, 10)], 1e-5, "too fine a grid"),  # ε in the thousands
        ([(0.1, 0.01, 1000)], 1e-5, "too fine a grid"),  # would take gigabytes
        ([(100.0, 1e-4, 10**12)], 0.1, "too fine a grid"),
        ([(1.0, 0.1, 3)], 1e-16, "delta = 1e-16 is too small"),
    ],
)
def test_where_the_numerical_accountant_gives_up(history, delta, why):
    """Where its numbers would be wrong or not come, the other accountant is named; that one has a
    bound."""
    with pytest.raises(UserError, match=rf"{why}.*privacy\.accountant=rdp"):
        epsilon(history, delta, "prv")
    assert 0 < epsilon(history, delta) < math.inf


@pytest.mark.parametrize("value", [math.nan, 1e9, RuntimeError("Cannot compute epsilon")])
def test_what_opacus_says_is_not_believed_blindly(monkeypatch, value):
    """NaN, more than Rényi orders prove, or an exception: never an ε."""
    from opacus.accountants import PRVAccountant

    def broken(self, delta, **kwargs):
        if isinstance(value, Exception):
            raise value
        return value

    monkeypatch.setattr(PRVAccountant, "get_epsilon", broken)
    with pytest.raises(UserError, match=r"privacy\.accountant=rdp"):
        epsilon([(1.0, 0.1, 100)], 1e-5, "prv")


def test_a_plan_is_a_value():
    """Equal by its numbers, as ledgers compare it."""
    assert Mechanism(1.0, 0.1, 1e-5) == Mechanism(1.0, 0.1, 1e-5) != Mechanism(1.0, 0.1, 1e-6)
