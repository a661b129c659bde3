"""Which linear layers an adapter sits on, and which modules are the task's head.

Works on a model of any device, the meta device included: only names and shapes are read.
"""

import json
import re
from collections.abc import Collection, Iterator
from typing import Any

import torch
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as PEFT_DEFAULTS
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fedlora import config as settings
from fedlora.adapters.unfit import unfit
from fedlora.errors import UserError


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
    return [*beside, *drawn(model)]


def drawn(model: PreTrainedModel) -> list[str]:
    """The modules of a model's body of which the checkpoint has nothing."""
    return list(getattr(model, "drawn", ()))


def targets(model: PreTrainedModel, config: settings.Adapter) -> dict[str, tuple[int, int]]:
    """The layers to adapt: module path -> (m, n), outputs and inputs, in the model's order.

    By default PEFT's LoRA table for the architecture, whatever the kind; every linear layer where
    the table has none. The head is never among them, nor, unless they are named, what PEFT cannot
    adapt, a layer of one output or input, and what reads no text.

    Raises:
        UserError: a name matches nothing or something else than a linear layer, or the rank
            exceeds min(m, n) of a layer (VeRA's may).
    """
    outside = dict(_body(model))
    linear = [k for k, m in outside.items() if _is_linear(m)]
    found = _requested(model, config, list(outside), linear)
    for name in found:
        if not _is_linear(outside[name]):
            raise UserError(
                f"adapter.target_modules selects {name!r}, a {type(outside[name]).__name__}; only "
                f"linear layers can be adapted. This model's are named {_listed(linear)}."
            )
    if not found or (lost := _lost(config.target_modules, list(outside))):
        what = "" if not found else f", of which {json.dumps(lost)}"
        heads = [x for x in head(model) if x in (config.target_modules or ())]
        known = f"{', '.join(heads)} is the head, which is trained in full. " if heads else ""
        raise UserError(
            f"adapter.target_modules = {config.target_modules!r}{what} matches no module of this "
            f"{type(model).__name__}. {known}{_meant(config.target_modules, list(outside))}Its "
            f"linear layers are named {_listed(linear)}; 'all-linear' adapts them all."
        )
    _check_fit(model, found)
    shapes = {name: shape(outside[name]) for name in found}
    if config.kind != "vera":
        _check_rank(config.rank, shapes)
    return shapes


def _is_linear(layer: nn.Module) -> bool:
    """Whether this is W x + b, and no router or the like that is written as such a layer and gives
    something else. One with a forward of its own is tried, without its values."""
    if not isinstance(layer, nn.Linear):
        return isinstance(layer, Conv1D)
    kind: Any = type(layer)
    if kind.forward is nn.Linear.forward or kind.__module__.startswith("bitsandbytes"):
        return True
    empty = {k: torch.empty_like(p, device="meta") for k, p in layer.named_parameters()}
    x = torch.empty(1, 2, layer.in_features, dtype=layer.weight.dtype, device="meta")
    try:
        y = functional_call(layer, empty, x)
    except Exception:  # of code that takes something else
        return False
    return isinstance(y, Tensor) and y.shape == (1, 2, layer.out_features)


def shape(layer: nn.Module) -> tuple[int, int]:
    """(m, n) of a linear layer; a Conv1D stores its weight as (n, m)."""
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    n, m = layer.weight.shape  # type: ignore[misc]
    return m, n


def shortest(model: PreTrainedModel, found: Collection[str]) -> list[str]:
    """Names that select exactly `found`: the last components of the paths if they suffice."""
    leaves = sorted(set(map(_end, found)))
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
    wanted = config.target_modules
    if wanted is not None and wanted != "all-linear":
        return _matches(wanted, names)
    described = model.config, model.config.get_text_config()
    table: Any = next((t for c in described if (t := PEFT_DEFAULTS.get(c.model_type))), None)
    some = _matches(table, names) if table and wanted is None else []
    return _usual(model, some) or _usual(model, _all(model, linear))


def _all(model: PreTrainedModel, linear: list[str]) -> list[str]:
    """All but the output layer, and gates and the like, of which no factor is any smaller."""
    output = model.get_output_embeddings()
    layers = {name: model.get_submodule(name) for name in linear}
    return [k for k, layer in layers.items() if layer is not output and min(shape(layer)) > 1]


def _usual(model: PreTrainedModel, found: list[str]) -> list[str]:
    """Of these what PEFT adapts and a text comes to: of a model that sees pictures too, the part
    that reads."""
    text = model.config.get_text_config()
    reads = [
        f"{name}."
        for name, module in model.named_modules()
        if isinstance(module, PreTrainedModel)
        and text is not model.config
        and module.config.model_type == text.model_type
    ]
    wrong = unfit(model, map(_end, found))
    return [k for k in found if _end(k) not in wrong and (not reads or k.startswith(tuple(reads)))]


def _end(name: str) -> str:
    return name.rpartition(".")[2]


def _above(name: str) -> str:
    return name.rpartition(".")[0]


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


def _lost(wanted: str | Collection[str] | None, names: list[str]) -> list[str]:
    """Of a list the names that match nothing."""
    return [] if isinstance(wanted, str) else [x for x in wanted or () if not _matches([x], names)]


def _meant(wanted: str | Collection[str] | None, names: list[str]) -> str:
    """What a string is, where it holds names and should have been a list."""
    if not isinstance(wanted, str):
        return ""
    found = [x for x in re.split(r"[\s,]+", wanted) if _matches([x], names)]
    said = "A string is a pattern of the whole path; name layers in a list: "
    return f"{said}adapter.target_modules = {json.dumps(found)}. " if found else ""


def _check_fit(model: PreTrainedModel, found: list[str]) -> None:
    for end, why in unfit(model, map(_end, found)).items():
        raise UserError(
            f"adapter.target_modules selects {end}, which cannot be adapted in a "
            f"{type(model).__name__}: {why}. Leave it out"
        )
    inside = dict(model.named_modules(remove_duplicate=False))
    twice: dict[int, list[str]] = {}
    for name, module in inside.items():
        twice.setdefault(id(module), []).append(name)
    for first, *others in twice.values():
        for other in others if first in found else ():
            if inside[_above(first)] is not inside[_above(other)]:
                raise UserError(
                    f"adapter.target_modules selects {first}, which is {other} too, where no "
                    "adapter would be: leave it out"
                )


def _check_rank(rank: int, shapes: dict[str, tuple[int, int]]) -> None:
    for name, (m, n) in shapes.items():
        if rank > min(m, n):
            raise UserError(
                f"adapter.rank = {rank} is too large for {name}, whose weight is {(m, n)}: at most "
                f"{min(m, n)} there, {min(min(s) for s in shapes.values())} for all targets."
            )


def _listed(names: list[str]) -> str:
    return ", ".join(sorted(set(map(_end, names)))) or "(none)"
