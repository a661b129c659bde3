"""Fed-SB: between two fixed orthonormal factors only R (r, r) is trained, so averaging is exact.

    W = W0 + s B R A,   Σ p_i B R_i A = B R̄ A,   R̄ = Σ p_i R_i

B and A span one estimated step of full fine-tuning (LoRA-SB), with step size η:

    ΔW = −η sign(Σ ∇L(W0)) = U S Vᵀ,   B = U_r,   A = V_rᵀ,   R0 = S_r / s

so the model has already moved before round 1. They travel once. `init = "xs"` starts from the
weights instead (LoRA-XS), which needs no data:

    W0 = U S Vᵀ,   B = U_r S_r,   A = V_rᵀ,   R0 ~ N(0, 1e-5²)

Singhal et al., "Fed-SB" (2025), arXiv:2502.15436; Ponkshe et al., "Initialization using Update
Approximation is a Silver Bullet" (LoRA-SB, 2024), arXiv:2411.19557; Bałazy et al., "LoRA-XS"
(2024), arXiv:2405.17604.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from fedlora import Base, Strategy, Tensors
from fedlora.lowrank import svd

Over = Literal["server", "clients", "sketch"]


class FedSB(Strategy):
    """Clients train and upload R; B and A are the server's first step, sent once."""

    adapter = "lora-sb"
    trained = shared = {"R", "head"}
    # R has r² entries in place of (m + n) r: the paper gives it four times LoRA's rank or more.
    defaults = {"adapter.rank": 32, "train.lr": 5e-3}
    paper = "Fed-SB (Singhal et al. 2025, arXiv:2502.15436)"

    init: Literal["server", "clients", "sketch", "xs"] = Field(
        "server",
        description="Where B and A come from: the gradient over the server's public rows, the sum "
        "of clients' gradients, two-stage sketches of them, or (xs) the weights themselves. "
        "'clients' and 'sketch' send gradients of client data, so they have to be asked for.",
    )

    def begin(self, base: Base) -> Tensors:
        """PEFT's start with B (m, r), R (r, r) and A (r, n) of every module replaced."""
        state = base.initial()
        for module in base.shapes:
            if self.init == "xs":
                B, R, A = _from_weight(base, module)
            else:
                B, R, A = _from_gradient(base, module, self.init)
            state |= {f"{module}.B": B, f"{module}.R": R, f"{module}.A": A}
        return state


def _from_gradient(base: Base, module: str, over: Over) -> tuple[Tensor, Tensor, Tensor]:
    """LoRA-SB: the first step of full fine-tuning, at rank r."""
    U, S, V = svd(-base.learning_rate * base.gradient(module, over).sign(), base.rank)
    return U, torch.diag(S) / base.scale, V


def _from_weight(base: Base, module: str) -> tuple[Tensor, Tensor, Tensor]:
    """LoRA-XS: the weight's own leading directions, and a model that has hardly moved."""
    U, S, V = svd(base.weight(module), base.rank)
    R = 1e-5 * torch.randn(base.rank, base.rank, generator=base.generator(f"{module}.R"))
    return U * S, R, V
