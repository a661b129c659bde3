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
        """p.grad = Σ clipped + N(0, σ² C²), parameter by parameter. They are added on the CPU: the
        same sum gets the same bits whatever the device, and some devices have no float64."""
        deviation = self.noise_multiplier * self.max_grad_norm
        for i, p in enumerate(self.params):
            noise = normals(p.shape, self._secret, "noise", self._step, i)
            total = p.summed_grad.cpu().double().view(p.shape) + deviation * noise
            p.grad = total.to(device=p.device, dtype=p.dtype)
        self._step += 1
