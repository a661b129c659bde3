"""The memory that a client's training takes, from a model's configuration alone.

    base      the frozen weights, in the base's format: quantised ones of b bits a number, and of
              every block of 64 (4bit) or row (8bit) a scale; embeddings and output layers are not
    adapter   fp32: every part, and of those that are trained a gradient and the optimizer's moments
    passes    what autograd keeps of one pass (`footprint.kept`), and the larger of what is there
              besides it: a chunk of a language model's logits, then as much again under way; the
              largest pass that the configuration asks for, on rows of data.max_length tokens

What a pass keeps is counted on a model whose tensors have shapes and no values, which came out up
to a seventh above the real thing (tests/fedlora/test_memory.py). The libraries themselves (some
hundreds of MB) and the rows are not in it.
"""

import copy
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from peft import get_peft_model
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from fedlora import config as settings
from fedlora import pieces
from fedlora.adapters import recipe, targets
from fedlora.adapters.narrow import narrow
from fedlora.adapters.recompute import recompute
from fedlora.config import Config
from fedlora.device import DTYPES, settled
from fedlora.footprint import UNDER_WAY, kept
from fedlora.tasks.likelihood import likelihood, under_way

FP32 = 4
MOMENTS = {"adamw": 2, "lora-plus": 2, "lora-fa": 2}
# A 4-bit number's share of its block's scale, itself of 8 bits, and of the scales' own (QLoRA,
# arXiv:2305.14314, section 3).
NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)


@dataclass(frozen=True)
class Memory:
    """Bytes of a client in training, on the device that has the model."""

    base: int
    adapter: int
    passes: int

    @property
    def together(self) -> int:
        return self.base + self.adapter + self.passes


def memory(
    config: Config, model: PreTrainedModel, parameters: Mapping[str, int], trained: int
) -> Memory:
    """What one client needs that trains alone.

    Args:
        model: on the meta device.
        parameters: of the adapter, by part.
        trained: parameters that the client optimises.

    Raises:
        UserError: nothing in the model can be adapted.
    """
    config = settled(config)
    train = config.train
    momentum = 1 if train.optimizer == "sgd" and train.momentum else 0
    moments = MOMENTS.get(train.optimizer, momentum)
    base, rows = _base(model, config.model), _rows(config)
    logits = under_way(model, rows * config.data.max_length)
    passes = rows * _known(config, model)
    return Memory(
        base=base,
        adapter=FP32 * (sum(parameters.values()) + trained * (1 + moments)),
        passes=int(max(UNDER_WAY * passes, passes + logits)),
    )


def _base(model: PreTrainedModel, chosen: settings.Model) -> int:
    """The head apart, which is counted with the adapter."""
    heads = tuple(f"{name}." for name in targets.head(model))
    output = model.get_output_embeddings()
    quantised = {
        id(m.weight)
        for m in model.modules()
        if chosen.quantize and isinstance(m, nn.Linear) and m is not output
    }
    size = DTYPES[chosen.dtype].itemsize
    total = 0.0
    for name, weight in model.named_parameters():
        if name.startswith(heads):
            continue
        if id(weight) not in quantised:
            total += weight.numel() * size
        elif chosen.quantize == "4bit":
            total += weight.numel() * NF4
        else:
            total += weight.numel() + FP32 * len(weight)
    return int(total)


def _rows(config: Config) -> int:
    """Rows of the largest pass."""
    train, most = config.train, pieces.most(config.simulation.device)
    rows = min(train.batch_size, train.micro_batch or train.batch_size)
    return max(1, min(rows, most // pieces.padded(config.data.max_length)))


def _known(config: Config, model: PreTrainedModel) -> int:
    """Bytes kept of one row, as counted. Products of a mixture's experts have a shape in bf16
    alone, of which fp32 takes twice as much; and where code looks at values (which token ends a
    row), what a transformer's L layers keep by rule, of h numbers a token, a heads and t tokens:

        L t (34 h + 5 a t)   bytes in bf16        (Korthikanti et al., arXiv:2205.05198, 4.1)
    """
    twice = FP32 // 2 if DTYPES[config.model.dtype] == torch.float32 else 1
    narrower = config.model.model_copy(update={"dtype": "bf16"})
    for times, own in ((1, config), (twice, config.model_copy(update={"model": narrower}))):
        try:
            return times * _kept(own, _fresh(model, copy.deepcopy(model.config)))
        except RuntimeError:  # what torch's tensors without values raise
            continue
    described: Any = model.config.get_text_config()
    blocks = sum(isinstance(m, GradientCheckpointingLayer) for m in model.modules())
    h, a, t = described.hidden_size, described.num_attention_heads, config.data.max_length
    return twice * max(blocks, described.num_hidden_layers) * t * (34 * h + 5 * a * t)


def _kept(config: Config, model: PreTrainedModel) -> int:
    """Bytes kept of one row of data.max_length tokens. Where all layers are alike, those of a few
    are counted: two more take as much whatever their number is.

        kept(L) = kept(l) + (kept(l + 2) - kept(l)) (L - l) / 2,   l = 2 or 3, as L is even or odd
    """
    layers = _alike(config, model)
    few = 2 + layers % 2
    if layers <= few + 2:
        return _kept_of(config, model)
    less, more = (_kept_of(config, _shallow(model, n)) for n in (few, few + 2))
    return less + (more - less) * (layers - few) // 2


def _alike(config: Config, model: PreTrainedModel) -> int:
    """How many layers the model has, if they are all alike, or each second one; else 0."""
    described: Any = model.config
    count = int(getattr(described, "num_hidden_layers", 0) or 0)
    kinds = list(getattr(described, "layer_types", None) or [""] * count)
    found = targets.targets(model, config.adapter)
    inside: dict[str, list[object]] = {}
    for name, module in model.named_modules():
        if number := re.search(r"\.(\d+)\.", f".{name}."):
            rest = name[: max(0, number.start() - 1)], f"{name}."[number.end() - 1 :]
            own = [tuple(p.shape) for p in module.parameters(recurse=False)]
            kind = type(module).__name__, rest, own, name in found
            inside.setdefault(number[1], []).append(kind)
    whole = len(inside) == count and all(x == inside["0"] for x in inside.values())
    turns = len(kinds) == count and all(a == b for a, b in zip(kinds, kinds[2:], strict=False))
    return count if whole and turns else 0


def _shallow(model: PreTrainedModel, layers: int) -> PreTrainedModel:
    """The same model with fewer layers, on the meta device too."""
    described: Any = copy.deepcopy(model.config)
    if getattr(described, "layer_types", None):
        described.layer_types = described.layer_types[:layers]
    described.num_hidden_layers = layers
    return _fresh(model, described)


def _fresh(model: PreTrainedModel, described: Any) -> PreTrainedModel:
    with torch.device("meta"):
        made: PreTrainedModel = type(model)(described)
    return made


def _kept_of(config: Config, model: PreTrainedModel) -> int:
    """Bytes that these layers keep."""
    found = targets.targets(model, config.adapter)
    scale = recipe.scaling(config.adapter)
    with warnings.catch_warnings():
        # PEFT asks for a property under the name it had before.
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
        adapted: Any = get_peft_model(
            model, recipe.peft_config(model, config.adapter, scale, list(found), 0)
        )
    narrow(adapted)
    if config.model.gradient_checkpointing:
        recompute(model)
    model.train()
    dtype = DTYPES[config.model.dtype]
    with FakeTensorMode():
        _valueless(adapted, dtype)
        ids = torch.zeros(1, config.data.max_length, dtype=torch.int64)

        inputs = {"input_ids": ids}

        def loss() -> Tensor:
            if model.get_output_embeddings() is not None:
                return likelihood(adapted, inputs, torch.arange(ids.numel()), ids[0])[0]
            return F.cross_entropy(adapted(**inputs).logits.float(), ids[:, 0])

        return kept(model, loss)


def _valueless(model: nn.Module, dtype: torch.dtype) -> None:
    """Give every tensor of a module one of its shape that takes no memory: frozen ones in the
    base's format, trained ones in fp32."""
    for module in model.modules():
        for name, tensor in module._parameters.items():
            if tensor is not None:
                own = torch.float32 if tensor.requires_grad else dtype
                empty = torch.empty(tensor.shape, dtype=own)
                module._parameters[name] = nn.Parameter(empty, tensor.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
