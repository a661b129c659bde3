"""Opacus's DP-SGD optimizer with noise from a cipher, in float64."""

from typing import Any

from opacus.optimizers import DPOptimizer

from fedlora.privacy.entropy import normals


class Optimizer(DPOptimizer):
    """As `DPOptimizer`, with noise from `secret`: an independent stream a step and parameter."""

    def __init__(self, optimizer: Any, *, secret: bytes, **settings: Any) -> None:
        super().__init__(optimizer, **settings)
        self._secret, self._step = secret, 0

    def add_noise(self) -> None:
        """p.grad = Σ clipped + N(0, σ² C²), parameter by parameter. They are added in float64: the
        same sum gets the same bits whatever the device."""
        deviation = self.noise_multiplier * self.max_grad_norm
        for i, p in enumerate(self.params):
            noise = normals(p.shape, self._secret, "noise", self._step, i)
            own = (deviation * noise).to(p.device, non_blocking=True)
            p.grad = (p.summed_grad.double().view(p.shape) + own).to(p.dtype)
        self._step += 1
