"""Tiny, randomly initialised models of four architectures, and their dense truth.

Sizes differ so that no layer in use is square where the architecture allows it: h = 16, 24 in
between, GPT-2's c_attn 16 -> 48 stored transposed, Llama's k and v 16 -> 8.
"""

import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from fedlora import config
from fedlora.adapters import PARTS, Adapter
from fedlora.streams import forked, stream
from fedlora.tensors import Tensors, part_of

SIZES = {
    "vocab_size": 30,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 20,
    "pad_token_id": 0,
    "num_labels": 3,
}
GPT2_SIZES = {
    "vocab_size": 30,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 20,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "num_labels": 3,
}
ARCHITECTURES = ("bert", "roberta", "llama", "gpt2")
KINDS = tuple(PARTS)


def model(architecture: str) -> PreTrainedModel:
    """The same weights each time."""
    with forked(0, architecture):
        if architecture == "bert":
            made = BertForSequenceClassification(BertConfig(**SIZES))
        elif architecture == "roberta":
            made = RobertaForSequenceClassification(RobertaConfig(**SIZES))
        elif architecture == "llama":
            made = LlamaForSequenceClassification(LlamaConfig(**SIZES, num_key_value_heads=1))
        else:
            made = GPT2ForSequenceClassification(GPT2Config(**GPT2_SIZES))
        return made.eval()


def adapter(architecture: str, kind: str, **fields: object) -> Adapter:
    """Rank 4 on every linear layer, unless `fields` of the configuration say otherwise."""
    fields = {"rank": 4, "target_modules": "all-linear", **fields}
    made = Adapter(model(architecture), config.Adapter(kind=kind, **fields), seed=7)
    made.model.eval()
    return made


def rows() -> Tensor:
    """Four rows of seven tokens."""
    return torch.randint(1, 30, (4, 7), generator=stream(0, "rows"))


def logits(network: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        return network(input_ids=rows()).logits


def drawn(made: Adapter, name: str = "state") -> Tensors:
    """Random values for everything a method may change: the adapter's parts and the head."""
    generator = stream(0, name)
    return {
        k: t + 0.05 * torch.randn(t.shape, generator=generator)
        for k, t in made.initial().items()
        if part_of(k) not in ("U", "V")
    }


def residual(made: Adapter, rank: int = 3) -> Tensors:
    """P and Q on every layer, D on the second."""
    generator = stream(0, "residual")
    found: Tensors = {}
    for module, (m, n) in made.shapes.items():
        found[f"{module}.P"] = 0.1 * torch.randn(m, rank, generator=generator)
        found[f"{module}.Q"] = 0.1 * torch.randn(rank, n, generator=generator)
    second = list(made.shapes)[1]
    found[f"{second}.D"] = 0.02 * torch.randn(*made.shapes[second], generator=generator)
    return found


def dense(made: Adapter, tensors: Tensors, module: str, scale: float) -> Tensor:
    """W - W0 of a module straight from the equation, (m, n) in float64; `tensors` is complete."""
    m, n = made.shapes[module]
    t = {k: v.double() for k, v in tensors.items()}
    if made.kind == "vera":
        U, V = t["vera.U"][:m], t["vera.V"][:, :n]
        delta = torch.diag(t[f"{module}.b"]) @ U @ torch.diag(t[f"{module}.d"]) @ V
    else:
        middle = t.get(f"{module}.R", torch.eye(t[f"{module}.A"].shape[0], dtype=torch.float64))
        delta = scale * t[f"{module}.B"] @ middle @ t[f"{module}.A"]
    if f"{module}.P" in t:
        delta = delta + t[f"{module}.P"] @ t[f"{module}.Q"]
    return delta + t.get(f"{module}.D", torch.zeros(m, n, dtype=torch.float64))


def dense_model(
    made: Adapter, architecture: str, tensors: Tensors, scale: float
) -> PreTrainedModel:
    """The plain model, without PEFT, that the adapter stands for: W0 + delta, and the head."""
    plain = model(architecture)
    with torch.no_grad():
        for module in made.shapes:
            weight = plain.get_submodule(module).weight
            delta = dense(made, tensors, module, scale)
            weight += delta.T if architecture == "gpt2" else delta
        heads = {k[5:]: t for k, t in tensors.items() if part_of(k) == "head"}
        plain.load_state_dict(heads, strict=False)
    return plain
