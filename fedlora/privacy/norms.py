"""The norms of rows' gradients, released as a noised histogram.

A row adds (a g, b e_j) to a step's sum: its gradient g, cut to norm C and divided by C, and e_j,
one in the bin of its norm before the cut. With a² + b² = 1 the whole has norm at most one, so a
step with noise N(0, σ²) on both is one Gaussian mechanism of multiplier σ. Seen from the gradient
its noise is σ C / a, from a bin's count σ / b.

Andrew et al., "Differentially Private Learning with Adaptive Clipping" (2021), arXiv:1905.03871,
release one such count, of unclipped gradients.

Shapes: norms (rows,), edges (bins - 1,), counts (bins,).
"""

import torch
from torch import Tensor

SHARE = 0.2  # b: what the histogram takes of a row's norm; a = 0.98
EDGES = tuple(2.0**i for i in range(-3, 4))  # norms over C: an eighth to eightfold


def stretched(sigma: float) -> float:
    """The noise multiplier that gradients get beside a histogram: σ / a."""
    return sigma / float((1 - SHARE**2) ** 0.5)


def counted(norms: Tensor, clip: float) -> Tensor:
    """Rows by bin; a norm that is not finite is in the last."""
    edges = (torch.tensor(EDGES) * clip).to(norms, non_blocking=True)
    bins = torch.bucketize(norms.nan_to_num(nan=torch.inf), edges)
    # Not bincount, which has a GPU waited for: it asks how many bins there are.
    each = bins[:, None] == torch.arange(len(EDGES) + 1, device=norms.device)
    return each.sum(dim=0).float()


def noised(counts: Tensor, sigma: float, steps: int, normals: Tensor) -> Tensor:
    """The counts of that many steps together, each step's with noise σ / b; `normals` (bins,) are
    standard ones."""
    return counts + sigma / SHARE * steps**0.5 * normals


def share_clipped(counts: Tensor, rows: float) -> float:
    """The fraction above C of the rows that the steps were expected to have."""
    above = counts[EDGES.index(1.0) + 1 :].sum()
    return float((above / rows).clamp(0, 1))


def median(counts: Tensor, clip: float) -> float:
    """The norm that half of the rows stay below, interpolated on the logarithm within its bin; the
    outer bins, which have one edge, give that edge."""
    mass = counts.clamp(min=0).double()
    below = mass.cumsum(0)
    if below[-1] == 0:
        return clip * EDGES[0]
    half = below[-1] / 2
    bin = int(torch.searchsorted(below, half))
    if bin == 0:
        return clip * EDGES[0]
    if bin == len(EDGES):
        return clip * EDGES[-1]
    inside = (half - below[bin - 1]) / mass[bin]
    return clip * float(EDGES[bin - 1] * (EDGES[bin] / EDGES[bin - 1]) ** float(inside))
