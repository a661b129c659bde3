"""LoRA-SB, the adapter s B R A with B and A frozen, as a variant of PEFT's LoRA.

B (m, r) and A (r, n) have orthonormal columns and rows and R (r, r) is zero until a method says
otherwise, so that a fresh adapter changes nothing and yet R has a gradient.

PEFT's variants are semi-private: nothing outside this file depends on how they work.

References: LoRA-SB, arXiv:2411.19557; LoRA-XS, arXiv:2405.17604.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import layer as lora
from peft.tuners.lora.variants import _register_frozen_peft_weight
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


class RVariant(lora.LoraVariant):
    """Adds R between A and B, and trains nothing else."""

    @staticmethod
    def init(module: Any, adapter_name: str, **_: Any) -> None:
        if not hasattr(module, "lora_R"):
            module.lora_R = nn.ModuleDict()
            module.adapter_layer_names = (*module.adapter_layer_names, "lora_R")
        A, B = module.lora_A[adapter_name], module.lora_B[adapter_name]
        for factor in (A, B):  # in fp32: the layer may be in a format without a QR
            drawn = nn.init.orthogonal_(torch.empty(factor.weight.shape))
            factor.weight.data = drawn.to(factor.weight.device)
        R = nn.Linear(A.out_features, A.out_features, bias=False, device=A.weight.device)
        nn.init.zeros_(R.weight)
        module.lora_R[adapter_name] = R
        for frozen in ("lora_A", "lora_B"):
            _register_frozen_peft_weight(module, adapter_name, frozen)

    @staticmethod
    def forward(module: Any, active_adapter: str, x: Tensor, result: Tensor, **_: Any) -> Tensor:
        A, R, B = (p[active_adapter] for p in (module.lora_A, module.lora_R, module.lora_B))
        h = module.lora_dropout[active_adapter](x)
        return result + B(R(A(h))) * module.scaling[active_adapter]


class RLinear(lora.Linear):
    """A linear layer, or GPT-2's transposed one, that knows the variant."""

    @property
    def lora_variants(self) -> dict[tuple[str, ...], type[lora.LoraVariant] | None]:
        return {**super().lora_variants, ("use_r",): RVariant}

    def merge(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("PEFT would drop R and the residual: use fedlora.export.merge")


@dataclass
class LoraSBConfig(LoraConfig):
    """LoRA's configuration with the variant switched on."""

    use_r: bool = field(default=True, metadata={"is_lora_variant": True})

    def __post_init__(self) -> None:
        super().__post_init__()
        self._register_custom_module({nn.Linear: RLinear, Conv1D: RLinear})
