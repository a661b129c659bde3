"""Central differential privacy: a trusted server, and each client as a whole protected.

    x ← x + (Σ_{i in round} min(1, C/‖Δ_i‖) Δ_i + N(0, σ² C²)) / (q K)

Δ_i is the change that client i made, all its tensors together. Each of K clients is in a round with
chance q (Poisson sampling); weights and denominator are fixed, as those that depend on who came
would tell it.

McMahan et al., "Learning Differentially Private Recurrent Language Models" (2018),
arXiv:1710.06963, algorithm 1 with flat clipping and the estimator of fixed denominator.
"""

import math

import torch

from fedlora.privacy.entropy import normals
from fedlora.tensors import Tensors


def clipped(update: Tensors, start: Tensors, bound: float) -> Tensors:
    """The update with its change from `start` cut to L2 norm `bound`, over all tensors together;
    bit for bit as it was where the change is no larger. One that is not finite changes nothing."""
    change = {k: t.double() - start[k].double() for k, t in update.items()}
    norm = float(sum(float(d.square().sum()) for d in change.values())) ** 0.5
    if norm <= bound:
        return update
    if not math.isfinite(norm):
        return dict(start)
    return {
        k: (start[k].double() + bound / norm * d).to(update[k].dtype) for k, d in change.items()
    }


def noised(
    start: Tensors,
    mean: Tensors,
    count: int,
    expected: float,
    deviation: float,
    secret: bytes,
) -> Tensors:
    """The new values of `start`, which holds every shared part.

    Args:
        mean: the uniform mean over `count` clipped clients, in the same names and shapes; empty
            where nobody came, which takes noise all the same.
        expected: q K, the number of clients that a round is expected to have.
        deviation: σ C, that of the noise on the sum.
        secret: where the noise comes from, an independent stream a name.
    """
    out = {}
    for name in start:
        x = start[name].double()
        total = count * (mean[name].double() - x) if name in mean else torch.zeros_like(x)
        noise = normals(x.shape, secret, "noise", name)
        out[name] = (x + (total + deviation * noise) / expected).float()
    return out
