"""The frozen residual of a layer: y = layer(x) + x Q^T P^T + x D^T.

P (m, rho), Q (rho, n), D (m, n), each in fp32 whatever the base is in: added to bf16 weights the
residual would drown. Its products are in the format of x, as the layer's are. No gradient reaches
it; the gradient with respect to x passes through.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


class Residual(nn.Module):
    """A side branch beside one adapted layer; empty until something is assigned."""

    P: Tensor | None
    Q: Tensor | None
    D: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        for part in ("P", "Q", "D"):
            self.register_buffer(part, None, persistent=False)

    @property
    def empty(self) -> bool:
        return self.P is None and self.D is None

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """y (…, m), the layer's output for x (…, n), with the residual added, in y's dtype."""
        out = y
        if self.P is not None and self.Q is not None:
            out = out + F.linear(F.linear(x, self.Q.to(x.dtype)), self.P.to(x.dtype))
        if self.D is not None:
            out = out + F.linear(x, self.D.to(x.dtype))
        return out.to(y.dtype)


def attach(layer: nn.Module) -> Residual:
    """Give a layer a residual, added to whatever its forward returns."""
    residual = Residual()
    layer.add_module("residual", residual)

    def add(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        return residual(inputs[0], output)

    layer.register_forward_hook(add)
    return residual
