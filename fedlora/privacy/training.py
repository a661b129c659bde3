"""DP-SGD over one client's rows.

    each row is in a step with chance q (Poisson sampling)
    g_i = ∇ loss of row i,   θ ← update(θ, (Σ min(1, C/‖g_i‖) g_i + N(0, σ² C²)) / (q n))

A step that drew no row is noise alone. The sum is divided by the expected number of rows, never the
drawn one, which would tell how many there were.

Abadi et al., "Deep Learning with Differential Privacy" (2016), arXiv:1607.00133, algorithm 1; the
optimizer is Opacus's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fedlora import config, parallel, pieces, profile
from fedlora.adapters import Adapter
from fedlora.config.privacy import Privacy
from fedlora.optimizers import ALONE, Turn
from fedlora.parallel import Ranks
from fedlora.privacy import norms
from fedlora.privacy.accounting import Mechanism
from fedlora.privacy.engines import per_example
from fedlora.privacy.entropy import normals, uniforms
from fedlora.privacy.steady import passes
from fedlora.streams import forked
from fedlora.tasks import Task
from fedlora.training import fresh


@dataclass(frozen=True)
class Private:
    """What a round releases beside the tensors; None where `privacy.statistics` is off."""

    clipped: float | None  # the share of gradients above C, noised
    gradient_norm: float | None  # the median norm, noised


class Updates:
    """One client's steps in a round: which rows each takes, and what becomes of their gradients."""

    def __init__(
        self,
        updater: torch.optim.Optimizer,
        rows: int,
        settings: config.Train,
        privacy: Privacy,
        mechanism: Mechanism,
        secret: bytes,
        ranks: Ranks = parallel.ALONE,
    ) -> None:
        """
        Args:
            updater: moves the parameters once their gradients are private.
            rows: n, of this client.
            mechanism: σ (zero: none), q and δ.
            secret: what every draw comes from: samples, noise, dropout. Used for this alone.
            ranks: among which a step's rows are shared out.
        """
        from fedlora.privacy.optimizer import Optimizer  # here, as Opacus takes seconds to import

        self.parameters: list[Any] = [p for g in updater.param_groups for p in g["params"]]
        self._privacy, self._secret, self._ranks = privacy, secret, ranks
        self._sigma, self._q = mechanism.noise_multiplier, mechanism.sample_rate
        self._rows, self._steps = rows, settings.steps_a_round(rows)
        self._expected = self._q * rows
        self._drawn = 0  # steps
        self._updater = Optimizer(
            updater,
            noise_multiplier=norms.stretched(self._sigma) if privacy.statistics else self._sigma,
            max_grad_norm=privacy.clip,
            expected_batch_size=self._expected,
            secret=secret,
            ranks=self._ranks,
        )
        self._counts = torch.zeros(len(norms.EDGES) + 1, device=self.parameters[0].device)

    def draw(self) -> list[int] | None:
        """The rows of the next step, perhaps none; None after the last."""
        self._updater.zero_grad()
        if self._drawn == self._steps:
            return None
        draws = uniforms(self._rows, self._secret, "rows", self._drawn)
        self._drawn += 1
        return (draws <= self._q).nonzero()[:, 0].tolist()

    @profile.timed("optimizer")
    def take(self, last: bool) -> None:
        """Clip the rows' gradients in `grad_sample` and add them to the step's sum; once the last
        of the step's rows are in, add noise and move the parameters."""
        found = _finite_norms(self._updater.grad_samples)
        self._counts += norms.counted(found, self._privacy.clip)
        self._updater.signal_skip_step(not last)
        self._updater.step()
        self._updater.zero_grad()

    def take_none(self) -> None:
        """The step of a draw without rows."""
        for p in self.parameters:
            p.grad_sample = p.new_zeros((0, *p.shape))
        self.take(last=True)

    def told(self) -> Private:
        """What the round releases beside the tensors."""
        if not self._privacy.statistics:
            return Private(None, None)
        draws = normals(self._counts.shape, self._secret, "histogram")
        (counts,) = self._ranks.sum([self._counts])
        counts = norms.noised(counts.cpu(), self._sigma, self._steps, draws)
        clipped = norms.share_clipped(counts, self._expected * self._steps)
        return Private(clipped, norms.median(counts, self._privacy.clip))


def train(
    task: Task,
    adapter: Adapter,
    parts: set[str],
    encoded: Any,
    settings: config.Train,
    privacy: Privacy,
    mechanism: Mechanism,
    secret: bytes,
    most: int | None = None,
    turn: Turn = ALONE,
    steady: bool = False,
    ranks: Ranks = parallel.ALONE,
) -> Private:
    """One round of DP-SGD on the parts, in place; the arguments are those of `Updates`.

    Args:
        most: padded tokens that memory has room for in one pass; None: any number. Steady passes
            are of one size, whatever it says.
        steady: whether a row's gradient may depend on that row alone to the bit, see
            `fedlora.privacy.steady`.
    """
    adapter.trainable(parts)
    updater = fresh(adapter, parts, settings, settings.steps_a_round(len(encoded)), turn)
    updates = Updates(updater, len(encoded), settings, privacy, mechanism, secret, ranks)
    adapter.model.train()
    engine = per_example(privacy.engine or "stacked", adapter, parts)
    device = adapter.model.device
    costs = pieces.costs(adapter.model, most, privacy.physical_batch)
    with forked(int.from_bytes(secret), "dropout", *ranks.path), engine as gradients:
        while (drawn := updates.draw()) is not None:
            if steady:
                cut = passes(encoded, drawn, task.max_length, device, ranks)
            else:
                cut = _passes(encoded, drawn, costs, ranks)
            for i, (piece, count) in enumerate(cut, 1):
                with profile.span("forward and backward"):
                    losses = partial(task.losses, adapter.model, task.batch(encoded, piece))
                    gradients(losses, len(piece))
                    for p in updates.parameters:
                        p.grad_sample = p.grad_sample[:count]
                updates.take(i == len(cut))
            if not drawn:
                updates.take_none()
    adapter.model.eval()
    return updates.told()


def _passes(
    encoded: Any, drawn: Sequence[int], costs: pieces.Costs, ranks: Ranks
) -> list[parallel.Pass]:
    """This rank's passes over a step's rows."""
    cut = ranks.cut([encoded.length(i) for i in drawn], costs)
    return [([drawn[i] for i in piece], count) for piece, count in cut]


def _finite_norms(samples: Sequence[Tensor]) -> Tensor:
    """(rows,): each row's gradient norm over all parameters, of which each gives (rows, …). A row
    whose gradient is not finite would get past the clipping: it is made zero."""
    found = torch.stack([g.flatten(1).norm(dim=1) for g in samples]).norm(dim=0)
    finite = found.isfinite()
    if finite.device.type != "cpu" or not finite.all():  # on a GPU to look first is to wait for it
        for g in samples:
            g.masked_fill_(~finite.view(-1, *[1] * (g.ndim - 1)), 0)
    return found
