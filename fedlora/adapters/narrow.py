"""An adapter's products in the format of what a layer is given, over weights that stay fp32.

PEFT would turn a bf16 layer's inputs to fp32 and multiply there: many times slower on a GPU, and
each input is kept twice for the backward pass. Here the weights are rounded to bf16 for the product
instead, as in mixed-precision training; their gradients are rounded once, and add up in fp32.
Over an fp32 base nothing is rounded.

Reference: Micikevicius et al., "Mixed Precision Training", arXiv:1710.03740, section 3.1.
"""

from functools import partial
from typing import Any

import torch.nn.functional as F
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

PRODUCTS = ("lora_A", "lora_R", "lora_B")


def narrow(model: PeftModel) -> None:
    """Let the LoRA layers of a model, in place, multiply in their inputs' format. DoRA's, whose
    norms are of W0 + B A, go on in fp32, as does VeRA."""
    for layer in model.modules():
        if isinstance(layer, LoraLayer) and not any(layer.use_dora.values()):
            _narrow(layer)


def _narrow(layer: Any) -> None:
    layer.cast_input_dtype_enabled = False
    for name in PRODUCTS:
        for linear in getattr(layer, name, {}).values():
            linear.forward = partial(_product, linear)


def _product(linear: nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x, linear.weight.to(x.dtype))
