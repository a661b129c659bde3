"""Low-rank algebra against dense float64."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedlora import lowrank
from fedlora.streams import stream


def draw(seed: object, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=stream(0, seed, *shape))


def factors(K: int, m: int, n: int, r: int) -> tuple[list[Tensor], list[Tensor], list[float]]:
    """K clients' B and A around a common start, as after a round, and uneven weights."""
    B = [draw("B", m, r) + 0.1 * draw(("B", i), m, r) for i in range(K)]
    A = [draw("A", r, n) + 0.1 * draw(("A", i), r, n) for i in range(K)]
    return B, A, [(i + 1) / (K * (K + 1) / 2) for i in range(K)]


def weighted(tensors: list[Tensor], weights: list[float]) -> Tensor:
    return sum(p * t.double() for p, t in zip(weights, tensors, strict=True))


def dense(P: Tensor, Q: Tensor) -> Tensor:
    return P.double() @ Q.double()


def error(ours: Tensor, truth: Tensor, scale: Tensor) -> float:
    return float((ours - truth).norm() / scale.norm())


sizes = st.integers(1, 17)


@given(
    K=st.integers(1, 6), m=sizes, n=sizes, r=st.integers(1, 5), s=st.sampled_from([0.3, 1.0, 8.0])
)
def test_residual_is_what_averaging_loses(K: int, m: int, n: int, r: int, s: float) -> None:
    """B̄Ā plus the residual is the mean of the products, with (K−1)·r columns, for any shape."""
    B, A, p = factors(K, m, n, r)
    B_bar, A_bar = weighted(B, p).float(), weighted(A, p).float()
    P, Q = lowrank.residual(B, A, p, B_bar, s)
    truth = s * sum(w * dense(b, a) for w, b, a in zip(p, B, A, strict=True))
    assert P.shape == (m, (K - 1) * r) and Q.shape == ((K - 1) * r, n)
    assert error(s * dense(B_bar, A_bar) + dense(P, Q), truth, truth) < 5e-7
    assert error(dense(*lowrank.mean(B, A, p, s)), truth, truth) < 5e-7


def test_residual_in_fp32_is_good_to_a_rounding() -> None:
    """At a real layer's size the error stays at fp32's own, 5e-8 of the product."""
    B, A, p = factors(5, 256, 384, 8)
    B_bar, A_bar = weighted(B, p).float(), weighted(A, p).float()
    truth = sum(w * dense(b, a) for w, b, a in zip(p, B, A, strict=True))
    ours = dense(B_bar, A_bar) + dense(*lowrank.residual(B, A, p, B_bar, 1.0))
    assert error(ours, truth, truth) < 5e-8


@given(m=sizes, n=sizes, r=st.integers(1, 5))
def test_difference_of_two_products(m: int, n: int, r: int) -> None:
    """s (BA − B̂Â), to a rounding of the difference itself: close products do not cancel."""
    B, A = draw("B", m, r), draw("A", r, n)
    B_hat, A_hat = B.bfloat16().float(), A.bfloat16().float()
    truth = 2.5 * (dense(B, A) - dense(B_hat, A_hat))
    part = dense((B - B_hat).abs(), A.abs()) + dense(B.abs(), (A - A_hat).abs())
    assert error(dense(*lowrank.difference(B, A, B_hat, A_hat, 2.5)), truth, part + 1e-30) < 1e-6


@given(m=sizes, n=sizes, rho=st.integers(1, 20), rank=st.integers(1, 8))
def test_truncation_is_the_best(m: int, n: int, rho: int, rank: int) -> None:
    """The error of the truncated product is the tail of its singular values, no more."""
    P, Q = draw("P", m, rho), draw("Q", rho, n)
    S = torch.linalg.svdvals(dense(P, Q))
    P1, Q1 = lowrank.truncate(P, Q, rank)
    assert P1.shape[1] == Q1.shape[0] <= rank
    assert P1.dtype == Q1.dtype == torch.float32
    assert float((dense(P1, Q1) - dense(P, Q)).norm()) <= float(S[rank:].norm() + 1e-6 * S[0])


@given(m=sizes, n=sizes, true=st.integers(0, 6), rho=st.integers(1, 20))
def test_compression_finds_the_rank_and_keeps_the_product(
    m: int, n: int, true: int, rho: int
) -> None:
    """A product of small rank in many columns comes back in as many columns as its rank."""
    core = draw("L", rho, true) @ draw("R", true, rho)
    P, Q = draw("P", m, rho), core @ draw("Q", rho, n)
    P1, Q1 = lowrank.compress(P, Q)
    assert P1.shape[1] <= min(m, n, rho, true)
    assert float((dense(P1, Q1) - dense(P, Q)).norm()) <= 1e-6 * float(dense(P, Q).norm())


WIDE = 90  # columns of which a third are looked at first


@given(m=st.integers(80, 130), n=st.integers(80, 130), true=st.integers(0, 40), decay=st.booleans())
@settings(max_examples=30)
def test_compression_of_wide_factors(m: int, n: int, true: int, decay: bool) -> None:
    """Whether a sketch holds it all or not, of a sharp rank or of values that fade below rounding:
    as many columns as the product's own numeric rank, and what is dropped is within a rounding."""
    fading = 0.5 ** torch.arange(float(true)) if decay else torch.ones(true)
    core = draw("L", WIDE, true) * fading @ draw("R", true, WIDE)
    P, Q = draw("P", m, WIDE), core @ draw("Q", WIDE, n)
    P1, Q1 = lowrank.compress(P, Q)
    S = torch.linalg.svdvals(dense(P, Q))
    tails = S.square().flip(0).cumsum(0).flip(0).sqrt()
    assert P1.shape[1] == int((tails > lowrank.ROUNDING * tails[0]).sum())
    assert float((dense(P1, Q1) - dense(P, Q)).norm()) <= 3e-7 * float(dense(P, Q).norm())


def test_a_sketch_is_taken_where_it_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a product of small rank a third of the columns, of one of full rank all of them are
    decomposed."""
    seen = []
    full = lowrank._decomposed
    monkeypatch.setattr(
        lowrank, "_decomposed", lambda P, Q, most: seen.append(P.shape[1]) or full(P, Q, most)
    )
    P, Q = draw("P", 120, WIDE), draw("Q", WIDE, 110)
    lowrank.compress(P, Q)
    lowrank.compress(P, draw("L", WIDE, 9) @ draw("R", 9, 110))
    assert seen == [WIDE, WIDE // 3]


@pytest.mark.parametrize(("fading", "most"), [(1.0, 1.02), (0.97, 1.005), (0.5, 1.0)])
@pytest.mark.usefixtures("global_rng_untouched")
def test_a_sketched_truncation_is_nearly_the_best(fading: float, most: float) -> None:
    """Of 300 columns, flat, slowly and quickly decaying: the error against the dense product is the
    least (Eckart and Young) times (1 + little); the same on every call, and from other factors of
    the same product, to a rounding."""
    m, n, rho, rank = 330, 400, 300, 16
    P, Q = draw("P", m, rho) * fading ** torch.arange(float(rho)), draw("Q", rho, n)
    S = torch.linalg.svdvals(dense(P, Q))
    P1, Q1 = lowrank.truncate(P, Q, rank)
    assert P1.shape == (m, rank) and P1.dtype == Q1.dtype == torch.float32
    lost = float((dense(P1, Q1) - dense(P, Q)).norm())
    assert lost <= most * float(S[rank:].norm()) + 1e-6 * float(S[0])
    again = lowrank.truncate(P, Q, rank)
    assert torch.equal(P1, again[0]) and torch.equal(Q1, again[1])
    turn = torch.linalg.qr(draw("turn", rho, rho).double()).Q
    P2, Q2 = lowrank.truncate((P.double() @ turn).float(), (turn.T @ Q.double()).float(), rank)
    assert error(P2.double(), P1.double(), P1) < 1e-3 and error(Q2.double(), Q1.double(), Q1) < 1e-3


@pytest.mark.parametrize("shape", [(20, 30), (780, 770)], ids=["full", "randomised"])
@pytest.mark.usefixtures("global_rng_untouched")
def test_svd_against_the_full_decomposition(shape: tuple[int, int]) -> None:
    """Leading vectors and values as torch's SVD has them (up to sign), orthonormal to 1e-5,
    the same on every call, and without the global generator."""
    m, n = shape
    decaying = torch.diag(0.7 ** torch.arange(20.0))
    W = draw("U", m, 20) @ decaying @ draw("V", 20, n)
    U, S, V = lowrank.svd(W, 6)
    full = torch.linalg.svd(W.double(), full_matrices=False)
    best = (full.U[:, :6] * full.S[:6]) @ full.Vh[:6]
    torch.testing.assert_close(S.double(), full.S[:6], rtol=1e-5, atol=0)
    assert error(dense(U * S, V), best, best) < 1e-5
    for gram in (U.T @ U, V @ V.T):
        torch.testing.assert_close(gram, torch.eye(6), rtol=0, atol=1e-5)
    assert all(map(torch.equal, (U, S, V), lowrank.svd(W, 6)))


@pytest.mark.parametrize("shape", [(20, 30), (780, 770)], ids=["full", "randomised"])
def test_svd_without_values_has_the_shapes(shape: tuple[int, int]) -> None:
    """As `fedlora cost` has it."""
    found = lowrank.svd(torch.empty(shape, device="meta"), 6)
    assert [t.shape for t in found] == [(shape[0], 6), (6,), (6, shape[1])]


def test_svd_of_a_large_matrix_is_never_in_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the run computes in, and that is left as it was."""
    found, plain, products = [], torch.svd_lowrank, torch.backends.cuda.matmul

    def noted(*arguments: Any, **given: Any) -> Any:
        found.append(products.fp32_precision)
        return plain(*arguments, **given)

    monkeypatch.setattr(torch, "svd_lowrank", noted)
    before, products.fp32_precision = products.fp32_precision, "tf32"
    try:
        lowrank.svd(draw("any", 780, 770), 6)
        assert found == ["ieee"] and products.fp32_precision == "tf32"
    finally:
        products.fp32_precision = before


def test_svd_of_signs_is_orthonormal_and_nearly_the_best() -> None:
    """The flattest spectrum, random signs, above the size that is decomposed in full: singular
    values within a percent, factors orthonormal to 1e-5."""
    W = draw("signs", 780, 770).sign()
    U, S, V = lowrank.svd(W, 6)
    torch.testing.assert_close(S, torch.linalg.svdvals(W)[:6], rtol=1e-2, atol=0)
    for gram in (U.T @ U, V @ V.T):
        torch.testing.assert_close(gram, torch.eye(6), rtol=0, atol=1e-5)
