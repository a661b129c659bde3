"""Algebra of matrices kept as thin factors: no product of two factors is ever formed.

Sketches are those of Halko, Martinsson and Tropp, "Finding Structure with Randomness" (2009),
arXiv:0909.4061: a matrix's range is found by what it makes of random vectors.

Shapes: a layer has m outputs and n inputs; B (m, r), A (r, n); a product P·Q has P (m, ρ) and
Q (ρ, n). K clients have weights p_i that sum to one, and one scale s.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from fedlora.streams import forked, stream

Factors = tuple[Tensor, Tensor]

SMALL = 768  # a matrix with no more rows or columns than this is decomposed in full
THIN = 256  # and so are factors with no more columns and rows than this
PROBES = 10  # random vectors beyond those that a basis is made of
# Of larger ones: directions that are followed besides twice the rank, and how often.
OVERSAMPLED, ITERATIONS = 64, 8

# What fp32 factors cannot hold anyway: products of them are good to about one rounding each.
ROUNDING = 2 * torch.finfo(torch.float32).eps


def stack(*products: Factors) -> Factors:
    """The sum of products as one: [P_1 … P_k]·[Q_1; …; Q_k]."""
    left, right = zip(*products, strict=True)
    return torch.cat(left, 1), torch.cat(right, 0)


def mean(
    B: Sequence[Tensor], A: Sequence[Tensor], weights: Sequence[float], scale: float
) -> Factors:
    """s Σ p_i B_i A_i, as (m, K·r)·(K·r, n)."""
    return stack(*[(scale * p * b, a) for p, b, a in zip(weights, B, A, strict=True)])


def residual(
    B: Sequence[Tensor], A: Sequence[Tensor], weights: Sequence[float], B_bar: Tensor, scale: float
) -> Factors:
    """What averaging the factors loses: s (Σ p_i B_i A_i − B̄ Ā), with plain means B̄ and Ā.

    Since Σ p_i (B_i − B̄) = 0, it is s Σ_{i<K} p_i (B_i − B̄)(A_i − A_K) exactly: a stack of
    (K−1)·r columns, and no decomposition (FedEx-LoRA, arXiv:2410.09432, eq. 5, factored).
    One client loses nothing: P (m, 0), Q (0, n).
    """
    none = (B_bar[:, :0], A[0][:0])
    terms = zip(weights[:-1], B[:-1], A[:-1], strict=True)
    return stack(none, *[(scale * p * (b - B_bar), a - A[-1]) for p, b, a in terms])


def difference(B: Tensor, A: Tensor, B_hat: Tensor, A_hat: Tensor, scale: float) -> Factors:
    """s (B A − B̂ Â) as (m, 2r)·(2r, n), with factors as small as the differences themselves."""
    return stack((scale * (B - B_hat), A), (scale * B_hat, A - A_hat))


def truncate(P: Tensor, Q: Tensor, rank: int) -> Factors:
    """The best approximation of P·Q of that rank in the Frobenius norm (Eckart and Young); like
    `compress`, in a form that depends on the product alone.

    Where ρ is many times the rank, it is made from a sketch, in a tenth of the time: what is lost
    is then within two percent of the least, and much nearer to it where the spectrum decays.
    """
    width = 2 * rank + PROBES
    if not P.is_meta and min(*P.shape, Q.shape[1]) > max(2 * width, THIN):
        P, Q = _onto(_sketched(P, Q, width, turns=1)[0], P, Q)
    return _decomposed(P, Q, rank)


def compress(P: Tensor, Q: Tensor) -> Factors:
    """The same product as U·S (m, ρ) and V (ρ, n), its SVD in as few columns as its numeric rank:
    what is dropped is less than fp32's rounding of the whole, in the Frobenius norm. On the meta
    device, the largest possible rank.

    It depends on the product alone, up to rounding, and says nothing else of the factors that it
    came from: each pair's sign is set by its own largest entry, and directions without a value,
    which are the factors' own, are dropped. To turn the factors instead, P·O and Oᵀ·Q with a random
    orthogonal O, would leave P·Pᵀ and Qᵀ·Q as they are.
    """
    width = P.shape[1] // 3  # often enough for all of it, as after few steps or of few rows
    if width > 2 * PROBES and not P.is_meta:
        P, Q = P.double(), Q.double()
        U, lost = _sketched(P, Q, width)
        if lost <= ROUNDING / 2:
            P, Q = _onto(U, P, Q)
    return _decomposed(P, Q, min(P.shape[0], Q.shape[1]))


def svd(W: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The leading singular vectors and values of W (m, n): U (m, rank), S (rank,), V (rank, n).

    In full, on the CPU, where that is quick (on the meta device: shapes alone); else by randomised
    subspace iteration (arXiv:0909.4061) in fp32, where W is and in a small part of the time: as
    orthonormal, exact where the spectrum decays, and of a matrix of signs, whose spectrum is flat,
    nearly the best approximation (`simulations.benchmarks.stacks` says how near).
    """
    size = 2 * rank + OVERSAMPLED
    if min(W.shape) <= max(2 * size, SMALL):
        full = (W if W.is_meta else W.cpu()).double()
        U, S, V = torch.linalg.svd(full, full_matrices=False)
    else:
        with forked(0, "svd"), _in_fp32():  # svd_lowrank draws from the global generator
            U, S, Vt = torch.svd_lowrank(W.float(), q=size, niter=ITERATIONS)
        V = Vt.T
    return _fp32(U[:, :rank]), _fp32(S[:rank]), _fp32(V[:rank])


@contextmanager
def _in_fp32() -> Iterator[None]:
    """Inside, a GPU's products are those of fp32 even where others may be rounded to TF32, which
    would leave factors orthonormal to 1e-3 alone."""
    products = torch.backends.cuda.matmul
    before, products.fp32_precision = products.fp32_precision, "ieee"
    try:
        yield
    finally:
        products.fp32_precision = before


def _decomposed(P: Tensor, Q: Tensor, most: int) -> Factors:
    """The thin SVD of P·Q, at most so many columns of it, in float64 by QR of both factors:
    O((m + n) ρ² + ρ³). With Qᵀ = O R the columns of U·S are P·(Rᵀ Vᵀ), V being that of the core, so
    that P's own orthonormal basis is never formed. In each row of V the entry of the largest size
    is positive, since a decomposition leaves signs open."""
    P, Q = P.double(), Q.double()
    O, R = torch.linalg.qr(Q.T)
    _, S, V = torch.linalg.svd(torch.linalg.qr(P, mode="r").R @ R.T, full_matrices=False)
    rank = min(_rank(S), most)
    turn, V = R.T @ V[:rank].T, V[:rank] @ O.T
    if rank:
        signs = V.gather(1, V.abs().argmax(1, keepdim=True)).sign()
        turn, V = turn * signs.T, V * signs
    return _fp32(P @ turn), _fp32(V)


def _sketched(P: Tensor, Q: Tensor, width: int, turns: int = 0) -> tuple[Tensor, float]:
    """An orthonormal basis U (m, width) of nearly all of M = P·Q, in float64. Its random vectors
    are the same whenever it is asked, so that it depends on M alone, up to rounding.

    Args:
        turns: rounds of subspace iteration, in P's format, which bring the leading directions out.

    Returns:
        U, and how much of M's norm was lost: an estimate, by how much of what M makes of the last
        vectors lies outside of the basis that the others span.
    """
    draw = torch.randn(width, Q.shape[1], generator=stream(0, "sketch"))
    Y = P @ (Q @ draw.to(P).T)
    for _ in range(turns):
        Z = torch.linalg.qr(Q.T @ (P.T @ torch.linalg.qr(Y).Q)).Q
        Y = P @ (Q @ Z)
    U, R = torch.linalg.qr(Y.double())
    outside, whole = R[-PROBES:, -PROBES:].norm() / PROBES**0.5, R.norm() / width**0.5
    return U, float(outside / whole) if whole else 0.0


def _onto(U: Tensor, P: Tensor, Q: Tensor) -> Factors:
    """P·Q within an orthonormal basis U: U and Uᵀ·P·Q, in float64."""
    return U, (U.T @ P.double()) @ Q.double()


def _rank(S: Tensor) -> int:
    """How many singular values are not lost in fp32's rounding of them all."""
    if S.is_meta or not len(S):
        return len(S)
    tails = S.square().flip(0).cumsum(0).flip(0).sqrt()  # norm of what is lost from here on
    return int((tails > ROUNDING * tails[0]).sum())


def _fp32(tensor: Tensor) -> Tensor:
    return tensor.float().contiguous()
