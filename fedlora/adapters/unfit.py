"""Linear layers that PEFT does not adapt as they stand, by the end of their path.

It takes names of a mixture's experts, as they once were called, for the tensors in which
Transformers holds all experts today, also where an ordinary layer has such a name (DeepSeek's
shared experts); and it keeps away from Mamba's layers whose weights a kernel reads past the layer.
Neither is told by a layer itself, so PEFT is asked, for every kind of adapter: all leave as LoRA.
"""

from collections.abc import Iterable

from peft import LoraConfig
from peft.tuners.tuners_utils import _check_lora_target_modules_mamba
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from transformers import PreTrainedModel


def unfit(model: PreTrainedModel, ends: Iterable[str]) -> dict[str, str]:
    """{last component of a path: why PEFT does not adapt layers of this name in such a model}."""
    return {end: why for end in sorted(set(ends)) if (why := _why(model, end))}


def _why(model: PreTrainedModel, end: str) -> str:
    config = LoraConfig(target_modules=[end])
    try:
        _check_lora_target_modules_mamba(config, model, end)
        convert_peft_config_for_transformers(config, model, None)
    except ValueError as error:
        return str(error)
    if set(config.target_modules or ()) != {end}:
        return "PEFT takes the name for that of a mixture's experts"
    return ""
