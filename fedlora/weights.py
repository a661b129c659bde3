"""Whether a checkpoint has the weights that its model is made of, by what loading it tells.

A task's head may be lacking, and so may a pooler, which many checkpoints of the same body have and
others have not: these are drawn. Anything else that is lacking, has other sizes or is left over
would be drawn or dropped without a word.
"""

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fedlora.adapters import targets
from fedlora.errors import UserError

SHOWN = 4  # names in a message
# For `from_pretrained`: what does not fit is told, and judged here.
TOLD: dict[str, Any] = {"output_loading_info": True, "ignore_mismatched_sizes": True}
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Loaded:
    """A model, and the names of what was drawn of it.

    Attributes:
        lacking: what the checkpoint has no weights for.
        resized: what it has in other sizes: its own, and the model's.
    """

    model: PreTrainedModel
    lacking: set[str]
    resized: dict[str, tuple[Shape, Shape]]


def loaded(model: PreTrainedModel, told: Mapping[str, Any], name: str) -> Loaded:
    """What `from_pretrained(…, output_loading_info=True)` gave of the model of this name.

    Raises:
        UserError: the body lacks weights, has them in other sizes, or the checkpoint has more of
            them than config.json says; a few are named.
    """
    own = {k for k, _ in model.named_parameters(remove_duplicate=False)}
    lacking = own & set(told["missing_keys"])
    resized = {k: (tuple(a), tuple(b)) for k, a, b in told["mismatched_keys"]} | _repacked(model)
    model.drawn = _drawn(model, lacking)  # type: ignore[assignment]  # see `targets.head`
    heads = tuple(f"{child}." for child in targets.head(model))
    faults = [
        _said("it lacks", [k for k in lacking if not k.startswith(heads)]),
        _said(
            "it has other sizes than config.json says, in",
            [k for k in resized if not k.startswith(heads)],
            {k: f" ({_sized(a)}, not {_sized(b)})" for k, (a, b) in resized.items()},
        ),
        _said("config.json has no place for", _left_over(model, told["unexpected_keys"])),
    ]
    if any(faults):
        raise UserError(
            f"{name!r} is no whole {type(model).__name__}: {'; '.join(filter(None, faults))}. "
            "Nothing of a pretrained body is drawn at random or dropped: take all files of the "
            "model as they were published, or correct its config.json"
        )
    return Loaded(model, lacking, resized)


def finite(model: PreTrainedModel, name: str) -> None:
    """Raises UserError where a weight is no number."""
    for key, weight in model.named_parameters():
        if weight.is_floating_point() and weight.numel() and not _finite(weight.detach()):
            raise UserError(
                f"the weights of {name!r} hold NaN or infinity, in {key}: the file is damaged, or "
                "was converted wrongly. Take it as it was published"
            )


def _finite(weight: Tensor) -> bool:
    """Without a copy, as weights are large and mapped."""
    return all(math.isfinite(x) for x in torch.aminmax(weight))


def _drawn(model: PreTrainedModel, lacking: Collection[str]) -> tuple[str, ...]:
    """The poolers of which nothing is there."""
    return tuple(
        name
        for name in poolers(model)
        if all(f"{name}.{k}" in lacking for k, _ in model.get_submodule(name).named_parameters())
    )


def trained_whole(model: PreTrainedModel) -> list[str]:
    """What of a model is, or may be, trained itself, and so is never quantised: its head, and a
    pooler."""
    return [*targets.head(model), *poolers(model)]


def poolers(model: PreTrainedModel) -> list[str]:
    """What a task's model has behind the layers of its body that is more than a norm, which is a
    part of every checkpoint."""
    prefix = model.base_model_prefix
    body = getattr(model, prefix, None)
    if not targets.head(model) or not isinstance(body, nn.Module):
        return []
    children = list(body.named_children())
    layers = [i for i, (_, child) in enumerate(children) if _any(child, nn.ModuleList)]
    behind = children[max(layers, default=len(children)) + 1 :]
    return [f"{prefix}.{name}" for name, child in behind if _any(child, nn.Linear)]


def _any(module: nn.Module, kind: type[nn.Module]) -> bool:
    return any(isinstance(m, kind) for m in module.modules())


def _repacked(model: PreTrainedModel) -> dict[str, tuple[Shape, Shape]]:
    """Quantised layers of other sizes, which Transformers does not compare."""
    found: dict[str, tuple[Shape, Shape]] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear):
            state = getattr(layer.weight, "quant_state", None)  # of 4 bits
            size = tuple(state.shape if state is not None else layer.weight.shape)
            meant = (layer.out_features, layer.in_features)
            if size != meant and (state is not None or hasattr(layer.weight, "SCB")):
                found[f"{name}.weight"] = size, meant
    return found


def _left_over(model: PreTrainedModel, unexpected: Collection[str]) -> list[str]:
    """Weights of the body's layers that the model has no place for: in one of its layers, or in
    further ones of the same kind. What stands elsewhere is another task's."""
    modules = dict(model.named_modules())
    children = {k for k, _ in model.named_children()}
    weights = {k for k, _ in model.named_parameters(remove_duplicate=False)} | set(unexpected)
    further: dict[tuple[str, str], dict[str, str]] = {}  # layer -> {weight: the part it is of}
    found = []
    for key in (k for k in unexpected if _is_weight(k, weights)):
        beside = key.partition(".")[0] in children
        name = key if beside else f"{model.base_model_prefix}.{key}"
        path, number, part = _layer(name, modules)
        if path and int(number) >= sum(1 for _ in modules[path].children()):
            further.setdefault((path, number), {})[key] = part
        elif path or _takes(modules.get(name.rpartition(".")[0])):
            found.append(key)
    for (path, _), parts in further.items():
        known = {k for layer in modules[path].children() for k, _ in layer.named_children()}
        if set(parts.values()) <= known:  # else of another kind, such as those that look ahead
            found += parts
    return found


def _is_weight(key: str, known: Collection[str]) -> bool:
    """A causal mask, a buffer, can be called bias, and stands beside no weight."""
    stem, _, leaf = key.rpartition(".")
    return leaf == "weight" or (leaf == "bias" and f"{stem}.weight" in known)


def _layer(name: str, modules: Mapping[str, nn.Module]) -> tuple[str, str, str]:
    """The list of layers that a weight is in, its layer's number there, and the part of the layer;
    empty where it is in none."""
    for at in re.finditer(r"\.(\d+)\.([^.]+)", name):
        if isinstance(modules.get(name[: at.start()]), nn.ModuleList):
            return name[: at.start()], at[1], at[2]
    return "", "", ""


def _takes(module: nn.Module | None) -> bool:
    """Whether a module has weights of its own, and so none by another name."""
    return module is not None and any(True for _ in module.parameters(recurse=False))


def _said(what: str, names: Collection[str], more: Mapping[str, str] | None = None) -> str:
    """A few names, and how many there are; "" where there are none."""
    shown = ", ".join(f"{k}{(more or {}).get(k, '')}" for k in sorted(names)[:SHOWN])
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{what} {shown}{rest}" if names else ""


def _sized(shape: Collection[int]) -> str:
    return " × ".join(map(str, shape)) or "a number"
