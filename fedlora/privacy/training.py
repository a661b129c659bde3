"""DP-SGD over one client's rows.

    each row is in a step with chance q (Poisson sampling)
    g_i = ∇ loss of row i,   θ ← update(θ, (Σ min(1, C/‖g_i‖) g_i + N(0, σ² C²)) / (q n))

A step that drew no row is noise alone. The sum is divided by the expected number of rows, never the
drawn one, which would tell how many there were.

Abadi et al., "Deep Learning with Differential Privacy" (2016), arXiv:1607.00133, algorithm 1; the
optimizer and the sampler are Opacus's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fedlora import config
from fedlora.adapters import Adapter
from fedlora.config.privacy import Privacy
from fedlora.privacy import norms
from fedlora.privacy.accounting import Mechanism
from fedlora.privacy.engines import per_example
from fedlora.privacy.entropy import generator
from fedlora.streams import forked
from fedlora.tasks import Task
from fedlora.training import optimizer as plain


@dataclass(frozen=True)
class Private:
    """What a round releases beside the tensors; None where `privacy.statistics` is off."""

    clipped: float | None  # the share of gradients above C, noised
    gradient_norm: float | None  # the median norm, noised


def train(
    task: Task,
    adapter: Adapter,
    parts: set[str],
    encoded: Any,
    settings: config.Train,
    privacy: Privacy,
    mechanism: Mechanism,
    secret: bytes,
) -> Private:
    """One round of DP-SGD on the parts, in place.

    Args:
        mechanism: σ (zero: none), q and δ of this client.
        secret: what every draw comes from: samples, noise, dropout.
    """
    from opacus.utils.uniform_sampler import UniformWithReplacementSampler

    from fedlora.privacy.optimizer import Optimizer  # here, as Opacus takes seconds to import

    rows, steps = len(encoded), settings.steps_a_round(len(encoded))
    sigma, q = mechanism.noise_multiplier, mechanism.sample_rate
    parameters = adapter.trainable(parts)
    updater = Optimizer(
        plain(parameters, settings),
        noise_multiplier=norms.stretched(sigma) if privacy.statistics else sigma,
        max_grad_norm=privacy.clip,
        expected_batch_size=q * rows,
        generator=generator(secret, "noise", adapter.model.device),
    )
    sampler = UniformWithReplacementSampler(
        num_samples=rows, sample_rate=q, steps=steps, generator=generator(secret, "rows")
    )
    counts = torch.zeros(len(norms.EDGES) + 1)
    adapter.model.train()
    engine = per_example(privacy.engine or "stacked", adapter, parts)
    with forked(int.from_bytes(secret), "dropout"), engine as gradients:
        for drawn in sampler:
            updater.zero_grad()
            pieces = _pieces(drawn, privacy.physical_batch)
            for piece in pieces:
                if piece:
                    losses = partial(task.losses, adapter.model, task.batch(encoded, piece))
                    gradients(losses, len(piece))
                else:
                    for p in parameters:
                        p.grad_sample = p.new_zeros((0, *p.shape))  # type: ignore[attr-defined]
                counts += norms.counted(_finite_norms(updater.grad_samples), privacy.clip).cpu()
                updater.signal_skip_step(piece is not pieces[-1])
                updater.step()
                updater.zero_grad()
    adapter.model.eval()
    if not privacy.statistics:
        return Private(None, None)
    counts = norms.noised(counts, sigma, steps, generator(secret, "histogram"))
    clipped = norms.share_clipped(counts, q * rows * steps)
    return Private(clipped, norms.median(counts, privacy.clip))


def _pieces(drawn: Sequence[int], most: int) -> list[Sequence[int]]:
    """A step's rows, at most so many at a time; one empty piece where there are none."""
    return [drawn[i : i + most] for i in range(0, len(drawn), most)] or [[]]


def _finite_norms(samples: Sequence[Tensor]) -> Tensor:
    """(rows,): each row's gradient norm over all parameters, of which each gives (rows, …). A row
    whose gradient is not finite would get past the clipping: it is made zero."""
    found = torch.stack([g.flatten(1).norm(dim=1) for g in samples]).norm(dim=0)
    if not (finite := found.isfinite()).all():
        for g in samples:
            g[~finite] = 0
    return found
