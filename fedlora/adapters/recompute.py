"""Gradient checkpointing: a layer's activations are computed again when the backward pass needs
them, so that only its input is kept.

Reference: Chen et al., "Training Deep Nets with Sublinear Memory Cost", arXiv:1604.06174.
"""

from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from fedlora.errors import UserError


def recompute(model: PreTrainedModel) -> None:
    """Let a model's layers recompute in training mode; dropout's masks are the same again.

    Raises:
        UserError: the model's code cannot.
    """
    if not model.supports_gradient_checkpointing:
        raise UserError(
            f"{type(model).__name__} knows no gradient checkpointing: set "
            "model.gradient_checkpointing = false"
        )
    # The reentrant kind wants inputs with gradients, which a frozen embedding does not give.
    model.gradient_checkpointing_enable({"use_reentrant": False})


def recomputing(model: nn.Module) -> list[GradientCheckpointingLayer]:
    """The layers that recompute."""
    return [
        m
        for m in model.modules()
        if isinstance(m, GradientCheckpointingLayer) and m.gradient_checkpointing
    ]
