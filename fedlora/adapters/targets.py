"""Which linear layers an adapter sits on, and which modules are the task's head.

Works on a model of any device, the meta device included: only names and shapes are read.
"""

import json
import re
from collections.abc import Collection, Iterator

from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as PEFT_DEFAULTS
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fedlora import config as settings
from fedlora.errors import UserError

LINEAR = (nn.Linear, Conv1D)


def head(model: PreTrainedModel) -> list[str]:
    """Names of the children that stand beside the pretrained body and hold parameters: a
    classifier, a score; and of what was `drawn` in the body, as `fedlora.weights` says: a pooler
    that the checkpoint lacks. Empty for a language model, whose output layer is pretrained too."""
    if model.get_output_embeddings() is not None:
        return []
    beside = [
        name
        for name, child in model.named_children()
        if name != model.base_model_prefix and any(True for _ in child.parameters())
    ]
    return [*beside, *getattr(model, "drawn", ())]


def targets(model: PreTrainedModel, config: settings.Adapter) -> dict[str, tuple[int, int]]:
    """The layers to adapt: module path -> (m, n), outputs and inputs, in the model's order.

    By default PEFT's LoRA table for the architecture, whatever the kind; every linear layer where
    the table has none. The head is never among them.

    Raises:
        UserError: the names match nothing or something else than a linear layer, or the rank
            exceeds min(m, n) of a layer (VeRA's may).
    """
    outside = dict(_body(model))
    linear = [k for k, m in outside.items() if isinstance(m, LINEAR)]
    found = _requested(model, config, list(outside), linear)
    for name in found:
        if not isinstance(outside[name], LINEAR):
            raise UserError(
                f"adapter.target_modules selects {name!r}, a {type(outside[name]).__name__}; only "
                f"linear layers can be adapted. This model's are named {_listed(linear)}."
            )
    if not found:
        raise UserError(
            f"adapter.target_modules = {config.target_modules!r} matches no module of this "
            f"{type(model).__name__}. {_meant(config.target_modules, list(outside))}Its linear "
            f"layers are named {_listed(linear)}; 'all-linear' adapts them all."
        )
    shapes = {name: shape(outside[name]) for name in found}
    if config.kind != "vera":
        _check_rank(config.rank, shapes)
    return shapes


def shape(layer: nn.Module) -> tuple[int, int]:
    """(m, n) of a linear layer; a Conv1D stores its weight as (n, m)."""
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    n, m = layer.weight.shape  # type: ignore[misc]
    return m, n


def shortest(model: PreTrainedModel, found: Collection[str]) -> list[str]:
    """Names that select exactly `found`: the last components of the paths if they suffice."""
    leaves = sorted({name.rpartition(".")[2] for name in found})
    same = set(_matches(leaves, [name for name, _ in _body(model)])) == set(found)
    return leaves if same else list(found)


def _body(model: PreTrainedModel) -> Iterator[tuple[str, nn.Module]]:
    skipped = tuple(f"{name}." for name in head(model))
    for name, module in model.named_modules():
        if name and not f"{name}.".startswith(skipped):
            yield name, module


def _requested(
    model: PreTrainedModel, config: settings.Adapter, names: list[str], linear: list[str]
) -> list[str]:
    if config.target_modules is not None:
        everything = config.target_modules == "all-linear"
        return _all(model, linear) if everything else _matches(config.target_modules, names)
    table: str | Collection[str] | None = PEFT_DEFAULTS.get(model.config.model_type)
    return (_matches(table, names) if table else []) or _all(model, linear)


def _all(model: PreTrainedModel, linear: list[str]) -> list[str]:
    output = model.get_output_embeddings()
    return [name for name in linear if model.get_submodule(name) is not output]


def _matches(wanted: str | Collection[str], names: list[str]) -> list[str]:
    """PEFT's rule: a string is a pattern of the whole path, a list holds paths or their ends."""
    if isinstance(wanted, str):
        try:
            return [name for name in names if re.fullmatch(wanted, name)]
        except re.error as e:
            raise UserError(
                f"adapter.target_modules = {wanted!r} is a string, a pattern of the whole path, "
                f'and a wrong one ({e}); name layers in a list: ["query", "value"]'
            ) from None
    ends = tuple(f".{end}" for end in wanted)
    return [name for name in names if f".{name}".endswith(ends)]


def _meant(wanted: str | Collection[str] | None, names: list[str]) -> str:
    """What a string is, where it holds names and should have been a list."""
    if not isinstance(wanted, str):
        return ""
    found = [x for x in re.split(r"[\s,]+", wanted) if _matches([x], names)]
    said = "A string is a pattern of the whole path; name layers in a list: "
    return f"{said}adapter.target_modules = {json.dumps(found)}. " if found else ""


def _check_rank(rank: int, shapes: dict[str, tuple[int, int]]) -> None:
    for name, (m, n) in shapes.items():
        if rank > min(m, n):
            raise UserError(
                f"adapter.rank = {rank} is too large for {name}, whose weight is {(m, n)}: at most "
                f"{min(m, n)} there, {min(min(s) for s in shapes.values())} for all targets."
            )


def _listed(names: list[str]) -> str:
    return ", ".join(sorted({name.rpartition(".")[2] for name in names})) or "(none)"
