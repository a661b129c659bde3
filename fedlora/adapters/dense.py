"""The weight of a frozen layer as numbers, whatever format it is held in."""

from typing import Any

from peft.utils.integrations import dequantize_module_weight
from torch import Tensor


def dense(layer: Any) -> Tensor:
    """As the layer computes with it, in its own orientation; of a quantised one what its numbers
    stand for. The layer stays as it is."""
    weight = layer.weight
    if type(weight).__name__ != "Int8Params":
        return dequantize_module_weight(layer).detach()
    # PEFT's way makes the parameter anew on a CPU, and the rows' scales are gone from it. Before
    # the first pass they are the weight's, afterwards the layer's state has them.
    scales = layer.state.SCB if weight.SCB is None else weight.SCB
    return weight.detach().float() * (scales.float()[:, None] / 127)
