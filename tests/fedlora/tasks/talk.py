"""A tiny causal language model with a tokenizer of words, and conversations for it."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fedlora.config import Config
from fedlora.streams import forked
from fedlora.tasks.instruction import Instruction

COLOURS = ["red", "green", "blue", "black"]
THINGS = [f"thing{i}" for i in range(12)]
WORDS = ["what", "colour", "has", "it", "is", "system", "user", "assistant", *COLOURS, *THINGS]
SPECIAL = ["<unk>", "<s>", "</s>", "<|", "|>"]
TEMPLATE = (
    "{% for m in messages %}<| {{ m.role }} |> {{ m.content }} </s>\n{% endfor %}"
    "{% if add_generation_prompt %}<| assistant |> {% endif %}"
)


def save(folder: Path, template: str | None = TEMPLATE, **sizes: Any) -> Path:
    """A two-layer Llama of random weights, drawn from a seed."""
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    shape: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,  # logits large enough that a frozen output layer can learn
    }
    with forked(0, "tiny llama"):
        model = LlamaForCausalLM(LlamaConfig(vocab_size=len(vocabulary), **{**shape, **sizes}))
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    return folder


def instruction(model: Path, **fields: Any) -> Instruction:
    """The task for a saved model; fields are `section__key`."""
    tree: dict[str, Any] = {"model": {"name": str(model), "task": "instruction"}}
    for name, value in fields.items():
        section, _, key = name.partition("__")
        tree.setdefault(section, {})[key] = value
    return Instruction(Config.model_validate(tree))


def rows(path: Path, count: int = 60) -> Path:
    """Which colour a thing has, asked in two ways by three owners: Alpaca's columns."""
    asked = ["what colour has {}", "{} is what colour"]
    found = [
        {
            "instruction": asked[i // 12 % 2].format(THINGS[i % 12]),
            "output": f"it is {COLOURS[i % 4]}",
            "domain": ("ann", "bob", "cy")[i % 3],
        }
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in found), "utf-8")
    return path


def turns(*contents: str, system: str = "") -> list[dict[str, str]]:
    """A conversation in which user and assistant alternate."""
    first = [{"role": "system", "content": system}] if system else []
    roles = ["user", "assistant"]
    return first + [{"role": roles[i % 2], "content": c} for i, c in enumerate(contents)]
