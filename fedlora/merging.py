"""A model with everything folded in: W0 + delta in the place of W0, as `from_pretrained` reads it.

Shapes: as in `fedlora.adapters.adapter`.
"""

import copy
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fedlora.adapters import Adapter
from fedlora.adapters.dense import dense
from fedlora.errors import UserError
from fedlora.tensors import Tensors


def merged(adapter: Adapter) -> PreTrainedModel:
    """The plain model that the adapter, as loaded, stands for; to be saved, as its buffers have no
    values. What nobody changed is shared with the adapter's own.

    The weights keep the base's format. A quantised base's become what its numbers stand for, in the
    format that it computes in. Weights that were tied and no longer are the same, as those of an
    output layer that is adapted and of the embeddings, are untied, and the settings say so.

    Raises:
        UserError: the model's code ties them whatever its settings say.
    """
    base = cast(PreTrainedModel, adapter.model.get_base_model())
    settings: Any = copy.deepcopy(base.config)
    vars(settings).pop("quantization_config", None)
    plain = _empty(base, settings)
    if (padding := _placed(base, plain)) is not None:
        settings.pad_token_id = padding
        plain = _empty(base, settings)
    state = _state(adapter, base, set(plain.state_dict()))
    if _parted(plain, state):
        for part in _parts(settings):
            part.tie_word_embeddings = False
        plain = _empty(base, settings)
        if names := _parted(plain, state):
            raise UserError(
                f"{type(base).__name__} ties {names[0]} to other weights whatever its settings "
                "say, and they differ now: no whole model can hold the adapter. Export the adapter "
                "(without --merge), or leave the layer out of adapter.target_modules"
            )
        state = _apart(state)
    plain.load_state_dict(state, assign=True)
    plain.tie_weights()
    return plain


def _empty(base: PreTrainedModel, settings: PretrainedConfig) -> PreTrainedModel:
    with torch.device("meta"):
        made: PreTrainedModel = type(base)(settings)
    return made


def _state(adapter: Adapter, base: PreTrainedModel, wanted: set[str]) -> Tensors:
    """The state of the model without PEFT: `wanted` are its names. The frozen ones are shared."""
    state = {k.replace(".base_layer.", "."): t for k, t in base.state_dict().items()}
    dtype = base.dtype
    for name, layer in base.named_modules():
        if getattr(base, "is_quantized", False) and isinstance(layer, nn.Linear):
            plain = name.replace(".base_layer", "")
            state[f"{plain}.weight"] = dense(layer).to(dtype)
    state |= {k: t.detach().to(dtype) for k, t in adapter.head().items()}
    layers = {id(base.get_submodule(name)): name for name in adapter.shapes}
    for name, layer in base.named_modules(remove_duplicate=False):  # of a shared block all names
        if module := layers.get(id(layer)):
            weight = (adapter.weight(module) + adapter.delta(module)).to(dtype)
            state[f"{name}.weight"] = (
                weight.T if isinstance(adapter.base(module), Conv1D) else weight
            )
    return {k: t for k, t in state.items() if k in wanted}


def _parted(plain: PreTrainedModel, state: Tensors) -> list[str]:
    """The weights that the model's settings or code tie to others, and that differ from these."""
    tied = list(plain.get_expanded_tied_weights_keys(all_submodels=True).items())
    first: dict[int, str] = {}
    for name, parameter in plain.named_parameters(remove_duplicate=False):
        tied.append((name, first.setdefault(id(parameter), name)))
    return [
        one
        for one, other in tied
        if one in state and other in state and not _same(state[one], state[other])
    ]


def _same(one: Tensor, other: Tensor) -> bool:
    return one.data_ptr() == other.data_ptr() or torch.equal(one, other)


def _apart(state: Tensors) -> Tensors:
    """Each tensor in memory of its own, as nothing is tied any more."""
    seen: set[int] = set()
    found: Tensors = {}
    for name, tensor in state.items():
        place = tensor.untyped_storage().data_ptr()
        found[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return found


def _parts(settings: Any) -> Iterator[Any]:
    """The settings, or settings inside them, that tie weights."""
    if getattr(settings, "tie_word_embeddings", False):
        yield settings
    for name in settings.sub_configs:
        if isinstance(inner := getattr(settings, name, None), PretrainedConfig):
            yield from _parts(inner)


def _placed(base: PreTrainedModel, plain: PreTrainedModel) -> int | None:
    """The padding token by which the base counts positions, where the plain model would count by
    another: RoBERTa's code does, once, as it is made. A run's tokenizer may pad with another."""
    for name, module in plain.named_modules():
        # An embedding's only says what has no gradient.
        if isinstance(module, (PreTrainedModel, nn.Embedding)):
            continue
        own, new = (getattr(m, "padding_idx", None) for m in (base.get_submodule(name), module))
        if own is not None and own != new:
            return int(own)
    return None
