"""PEFT's initialisations of LoRA, on a base that stays as it is.

PiSSA and OLoRA begin with s B0 A0, a part of W0 that is to be trained, and take it out of W0:

    W = (W0 - s B0 A0) + s B A

Here nobody's W0 changes, on which all nodes agree by digest: what is taken out is the frozen
residual P = -s B0, Q = A0, in fp32 whatever the base is in. An SVD's signs differ between machines,
so the server computes this once and sends it.

Shapes: W0 (m, n), A (r, n), B (m, r).

References: PiSSA, arXiv:2404.02948; OLoRA, arXiv:2406.01775.
"""

from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn

from fedlora import config as settings
from fedlora.adapters.adapter import NAME, Adapter
from fedlora.streams import forked
from fedlora.tensors import Tensors


def initial(
    adapter: Adapter,
    config: settings.Adapter,
    seed: int,
    wire: torch.dtype = torch.float32,
    device: str | None = None,
) -> Tensors:
    """Every tensor that the adapter begins with, the residual included. A layer's draws depend on
    its name alone.

    Args:
        wire: the format that A and B cross to clients in. Rounded to it here, they are on every
            client what was taken out.
        device: on which W0 is decomposed, by default the model's.
    """
    tensors = adapter.initial()
    if config.init == "default":
        return tensors
    s = adapter.scaling.at(adapter.scaling.rank)
    for module in adapter.shapes:
        with forked(seed, "init", module):
            factors = _by_peft(adapter, adapter.weight(module).to(device=device), config.init)
        A, B = (t.to(wire).float() for t in factors)
        tensors |= {f"{module}.A": A, f"{module}.B": B}
        if config.takes_out:
            tensors |= {f"{module}.P": -s * B, f"{module}.Q": A.clone()}
    return tensors


def _by_peft(adapter: Adapter, weight: Tensor, init: str) -> tuple[Tensor, Tensor]:
    """A and B as PEFT makes them, on a layer made for the purpose, since PEFT changes its W0."""
    m, n = weight.shape
    layer = nn.Linear(n, m, bias=False, device="meta")
    layer.weight = nn.Parameter(weight.clone(), requires_grad=False)
    scaling = adapter.scaling
    config = LoraConfig(
        r=scaling.rank,
        lora_alpha=scaling.alpha,  # type: ignore[arg-type]  # PEFT only divides it
        use_rslora=scaling.rslora,
        init_lora_weights=init,  # type: ignore[arg-type]  # pissa_niter_4 is none of its literals
    )
    made: Any = Linear(layer, NAME, config, r=scaling.rank, lora_alpha=config.lora_alpha)
    factors = made.lora_A[NAME].weight, made.lora_B[NAME].weight
    A, B = (t.detach().to("cpu", torch.float32, copy=True).contiguous() for t in factors)
    return A, B
