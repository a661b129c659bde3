"""What PEFT is told to put on a model."""

from typing import Any

from peft import LoraConfig, PeftConfig, VeraConfig
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fedlora import config as settings
from fedlora.adapters import targets
from fedlora.adapters.lora_sb import LoraSBConfig
from fedlora.errors import UserError
from fedlora.strategy import Scaling
from fedlora.streams import derive

PARTS = {
    "lora": frozenset({"A", "B"}),
    "vera": frozenset({"d", "b"}),
    "lora-sb": frozenset({"R"}),
}


def parts(config: settings.Adapter) -> set[str]:
    """The adapter's own parts that can be trained; the head's is not among them."""
    assert config.kind is not None, "the method's kind is resolved before this"
    return set(PARTS[config.kind]) | ({"M"} if config.dora else set())


def scaling(config: settings.Adapter) -> Scaling:
    """The scale s by rank: alpha is 2 r by default for LoRA, and what makes s = 1 for LoRA-SB.
    VeRA has no scale: one always."""
    r = config.rank
    if config.kind == "vera":
        if config.alpha is not None or config.rslora:
            raise UserError(
                "VeRA has no scale: leave adapter.alpha and adapter.rslora out, "
                "or set adapter.kind = 'lora'."
            )
        return Scaling(r, float(r))
    default = 2.0 * r if config.kind == "lora" else (r**0.5 if config.rslora else float(r))
    return Scaling(r, config.alpha or default, config.rslora)


def peft_config(
    model: PreTrainedModel, config: settings.Adapter, scale: Scaling, found: list[str], seed: int
) -> PeftConfig:
    """PEFT's configuration of the adapter on these modules."""
    common: dict[str, Any] = {
        "r": config.rank,
        "target_modules": targets.shortest(model, found),
        "modules_to_save": targets.head(model) or None,
        "fan_in_fan_out": all(isinstance(model.get_submodule(k), Conv1D) for k in found),
    }
    if config.kind == "vera":
        key = derive(seed, "vera")
        return VeraConfig(vera_dropout=config.dropout, projection_prng_key=key, **common)
    kind = LoraSBConfig if config.kind == "lora-sb" else LoraConfig
    own: dict[str, Any] = {"lora_alpha": scale.alpha, "use_rslora": scale.rslora}
    return kind(lora_dropout=config.dropout, use_dora=config.dora, **own, **common)
