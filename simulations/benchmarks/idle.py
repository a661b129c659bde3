"""A model that does next to nothing beside its adapters, for rounds whose passes cost nothing.

Importing this module makes `idle` a task, so that worker processes know it too: a configuration
names a method as `simulations.benchmarks.idle:FedIT`, and they import what it names.

Shapes: b rows of a batch, an adapted layer of m outputs and n inputs, c labels.
"""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from fedlora.tasks import TASKS
from fedlora.tasks.classification import Classification
from strategies.fedex import FedEx
from strategies.fedit import FedIT
from strategies.fedsa import FedSA
from strategies.ffa import FFA

__all__ = ["FFA", "FedEx", "FedIT", "FedSA", "Idle"]

TASKS["idle"] = (__name__, "Idle")


class Idle(Classification):
    """Classification by a model whose frozen layers are left out: adapted layers and the head see
    the mean of a row's embeddings, so that every trained number has a gradient and moves."""

    def model(self, seed: int, stored: bool = False) -> PreTrainedModel:
        """The real model, with all its weights; only its forward is another."""
        model = super().model(seed, stored)
        model.forward = _forward(model)
        return model


def _forward(model: PreTrainedModel) -> Callable[..., SequenceClassifierOutput]:
    def forward(input_ids: Tensor, **_: Any) -> SequenceClassifierOutput:
        hidden = model.get_input_embeddings()(input_ids).mean(dim=1)  # (b, n)
        for layer in _adapted(model):
            hidden = F.layer_norm(hidden + layer(hidden), hidden.shape[1:])  # no loss gets to zero
        return SequenceClassifierOutput(logits=model.get_submodule("classifier")(hidden))

    return forward


def _adapted(model: PreTrainedModel) -> list[nn.Module]:
    return [m for m in model.modules() if hasattr(m, "lora_A")]
