"""Opacus's DP-SGD optimizer with noise from a cipher, in float64."""

from typing import Any

from opacus.optimizers import DPOptimizer

from fedlora.parallel import Ranks
from fedlora.privacy.entropy import normals


class Optimizer(DPOptimizer):
    """As `DPOptimizer`, with noise from `secret`: an independent stream a step and parameter. Ranks
    that share a step's rows out have one secret, and so one noise on the sum of all."""

    def __init__(self, optimizer: Any, *, secret: bytes, ranks: Ranks, **settings: Any) -> None:
        super().__init__(optimizer, **settings)
        self._secret, self._step, self._ranks = secret, 0, ranks

    def add_noise(self) -> None:
        """p.grad = Σ clipped + N(0, σ² C²), parameter by parameter. They are added in float64: the
        same sum gets the same bits whatever the device."""
        deviation = self.noise_multiplier * self.max_grad_norm
        sums = self._ranks.sum([p.summed_grad.view(p.shape) for p in self.params])
        for i, (p, clipped) in enumerate(zip(self.params, sums, strict=True)):
            noise = normals(p.shape, self._secret, "noise", self._step, i)
            own = (deviation * noise).to(p.device, non_blocking=True)
            p.grad = (clipped.double() + own).to(p.dtype)
        self._step += 1
