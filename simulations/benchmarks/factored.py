"""What the benchmark of exact methods compares: a server's works on one layer, each in factors and
densely, and their float64 truth, which shares no decomposition with fedlora's.

Shapes: a layer has m outputs and n inputs; client i of K uploads B_i (m, r) and A_i (r, n), has
weight p_i and the scale s; a product P·Q has P (m, ρ) and Q (ρ, n). The mean is s Σ p_i B_i A_i,
the residual that less s B̄ Ā, with plain means B̄ and Ā as clients hold them.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from fedlora.lowrank import Factors, compress, mean, residual, stack, truncate
from fedlora.streams import stream

APART = 0.1  # size of what clients' factors differ by, of A's common part
ROWS = 256  # of the truth that are formed at once


class Layer(NamedTuple):
    """A layer's outputs and inputs, its clients, their rank r and the rank r' of a truncation."""

    m: int
    n: int
    clients: int = 10
    rank: int = 16
    truncated: int = 32


class Uploads(NamedTuple):
    """What the server has: clients' factors, their means, weights that sum to one, the scale."""

    B: list[Tensor]
    A: list[Tensor]
    B_bar: Tensor
    A_bar: Tensor
    weights: list[float]
    scale: float


Found = Factors | Tensor
Way = Callable[[Layer, Uploads], Found]


class Work(NamedTuple):
    """Something to compute and the ways to do it."""

    name: str
    ways: dict[str, Way]
    decomposes: bool  # the dense matrix, to a lower rank
    of_mean: bool  # or of the residual


def draw(layer: Layer, device: str, common: float = 0.0) -> Uploads:
    """Random uploads with uneven weights and α = 2r.

    Args:
        common: size of what clients' B have in common. LoRA starts from B = 0, so that in the
            first round they have nothing; later it outgrows what a round adds.
    """
    m, n, K, r, _ = layer
    generator = stream(0, "exact", *layer, common)

    def normal(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=generator)

    A_start, B_start = normal(r, n), common * normal(m, r)
    A = [(A_start + APART * normal(r, n)).to(device) for _ in range(K)]
    B = [(B_start + APART * normal(m, r)).to(device) for _ in range(K)]
    p = [2 * (i + 1) / (K * (K + 1)) for i in range(K)]
    B_bar, A_bar = (
        reduce(torch.add, [w * x.double() for w, x in zip(p, X, strict=True)]).float()
        for X in (B, A)
    )
    return Uploads(B, A, B_bar, A_bar, p, 2.0)


def residual_in_factors(_: Layer, u: Uploads) -> Factors:
    """By stacking, and the SVD of that, which is what clients are sent."""
    return compress(*_stacked(u))


def residual_in_one_product(_: Layer, u: Uploads) -> Tensor:
    """Dense (m, n), with the least work that a dense result takes."""
    P, Q = stack(mean(u.B, u.A, u.weights, u.scale), (-u.scale * u.B_bar, u.A_bar))
    return P @ Q


def residual_densely(_: Layer, u: Uploads) -> Tensor:
    """Dense (m, n), client by client, as published code of the method does it."""
    return u.scale * (_dense_mean(u) - u.B_bar @ u.A_bar)


def truncated_in_factors(layer: Layer, u: Uploads) -> Factors:
    """The residual's best rank r', from its factors."""
    return truncate(*_stacked(u), layer.truncated)


def truncated_densely(layer: Layer, u: Uploads) -> Factors:
    """The residual's best rank r', by SVD of the dense one."""
    return _leading(residual_densely(layer, u), layer.truncated)


def mean_in_factors(layer: Layer, u: Uploads) -> Factors:
    """FlexLoRA's step: the mean's best rank r, from its factors."""
    return truncate(*mean(u.B, u.A, u.weights, u.scale), layer.rank)


def mean_densely(layer: Layer, u: Uploads) -> Factors:
    """FlexLoRA's step as in its paper (arXiv:2402.11505): SVD of the dense mean."""
    return _leading(u.scale * _dense_mean(u), layer.rank)


WAYS = FACTORS, ONE_PRODUCT, DENSE = "factors", "one product", "dense"
RESIDUAL = Work(
    "residual",
    {
        FACTORS: residual_in_factors,
        ONE_PRODUCT: residual_in_one_product,
        DENSE: residual_densely,
    },
    decomposes=False,
    of_mean=False,
)
TRUNCATED = Work(
    "truncated residual",
    {FACTORS: truncated_in_factors, DENSE: truncated_densely},
    decomposes=True,
    of_mean=False,
)
MEAN = Work(
    "FlexLoRA's SVD", {FACTORS: mean_in_factors, DENSE: mean_densely}, decomposes=True, of_mean=True
)
WORKS = {work.name: work for work in (RESIDUAL, TRUNCATED, MEAN)}


def best(work: Work, layer: Layer, u: Uploads) -> tuple[Factors, Tensor]:
    """The best product of the work's rank k in float64, as U·S (m, k) and V (k, n), and S (k,).

    By SVD of the dense W where it is square, else by the eigenvectors of WᵀW: the small values are
    lost to rounding there, the leading ones good to 1e-12.
    """
    k = layer.rank if work.of_mean else layer.truncated
    if layer.m == layer.n:
        W = torch.cat([exact(work, u, rows) for rows in blocks(layer)])
        U, S, V = torch.linalg.svd(W)
        return (U[:, :k] * S[:k], V[:k]), S[:k]
    gram = torch.zeros(layer.n, layer.n, dtype=torch.float64, device=u.B_bar.device)
    for rows in blocks(layer):
        W = exact(work, u, rows)
        gram.addmm_(W.T, W)
    values, vectors = torch.linalg.eigh(gram)
    V = vectors[:, -k:].flip(1).T
    US = torch.cat([exact(work, u, rows) @ V.T for rows in blocks(layer)])
    return (US, V), values[-k:].flip(0).sqrt()


def exact(work: Work, u: Uploads, rows: slice) -> Tensor:
    """Some rows of the dense mean or residual in float64, client by client."""
    W = reduce(torch.add, (p * (b[rows].double() @ a.double()) for p, b, a in _clients(u)))
    if not work.of_mean:
        W -= u.B_bar[rows].double() @ u.A_bar.double()
    return u.scale * W


def errors(
    found: Sequence[Found], truth: Callable[[slice], Tensor], layer: Layer
) -> tuple[list[float], float]:
    """‖found − truth‖ of each result and ‖truth‖, in the Frobenius norm. The truth's rows are
    formed a block at a time, so that checking takes little memory."""
    lost, whole = torch.zeros(len(found), dtype=torch.float64), 0.0
    for rows in blocks(layer):
        W = truth(rows)
        whole += float(W.square().sum())
        lost += torch.tensor([float((block(f, rows) - W).square().sum()) for f in found])
    return lost.sqrt().tolist(), whole**0.5


def block(found: Found, rows: slice) -> Tensor:
    """Some rows of a result, dense, in float64."""
    if isinstance(found, Tensor):
        return found[rows].double()
    P, Q = found
    return P[rows].double() @ Q.double()


def blocks(layer: Layer) -> list[slice]:
    """Slices that share a layer's rows out."""
    return [slice(start, start + ROWS) for start in range(0, layer.m, ROWS)]


def _clients(u: Uploads) -> Iterator[tuple[float, Tensor, Tensor]]:
    return zip(u.weights, u.B, u.A, strict=True)


def _stacked(u: Uploads) -> Factors:
    return residual(u.B, u.A, u.weights, u.B_bar, u.scale)


def _dense_mean(u: Uploads) -> Tensor:
    """Σ p_i B_i A_i, without s."""
    W = u.B_bar.new_zeros(u.B_bar.shape[0], u.A_bar.shape[1])
    for p, b, a in _clients(u):
        W += p * (b @ a)
    return W


def _leading(W: Tensor, rank: int) -> Factors:
    U, S, V = torch.linalg.svd(W, full_matrices=False)
    return U[:, :rank] * S[:rank], V[:rank]
