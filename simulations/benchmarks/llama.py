"""A Llama of random weights in the shape of a real one, and conversations for it.

Speed and memory do not depend on what weights and words are, so that nothing has to be downloaded.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fedlora.models import quiet
from fedlora.streams import forked, stream

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}> {{ m.content }} </s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)
SPECIAL = ["<unk>", "<s>", "</s>", "<user>", "<assistant>"]


@dataclass(frozen=True)
class Shape:
    """Of a model, and of the rows that it is given: their words are log-normal about `words`, a
    third of them in the answer, as those of Alpaca are."""

    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    groups: int  # heads of keys and values
    words: int
    most: int  # tokens a row

    @property
    def config(self) -> LlamaConfig:
        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.groups,
            max_position_embeddings=2 * self.most,
            tie_word_embeddings=True,
            bos_token_id=SPECIAL.index("<s>"),
            eos_token_id=SPECIAL.index("</s>"),
        )


# Llama-3.2-1B's own sizes, from its published configuration.
ONE_BILLION = Shape(128256, 2048, 8192, 16, 32, 8, words=120, most=512)
TINY = Shape(64, 32, 48, 2, 4, 2, words=8, most=32)
SHAPES = {"1b": ONE_BILLION, "tiny": TINY}


def save(folder: Path, shape: Shape, device: str = "cpu") -> Path:
    """The model in bf16 and a tokenizer of words, as a folder that `model.name` takes.

    Args:
        device: on which the weights are drawn; a GPU is faster at it.
    """
    words = [*SPECIAL, *(f"w{i}" for i in range(shape.vocabulary - len(SPECIAL)))]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    with quiet():
        _drawn(shape, device).save_pretrained(folder)
    return folder


def _drawn(shape: Shape, device: str) -> Any:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with forked(0, "random llama"), torch.device(device):
            return LlamaForCausalLM(shape.config)
    finally:
        torch.set_default_dtype(before)


def rows(shape: Shape, count: int) -> Dataset:
    """Conversations of one turn, the same ones for the same arguments."""
    draw = stream(0, "benchmark", "conversations")
    spread = torch.randn(count, generator=draw).mul(0.6).exp()
    lengths = (shape.words * spread).clamp(6, shape.most - 8).long().tolist()
    return Dataset.from_dict({"messages": [_row(shape, n, draw) for n in lengths]})


def write_rows(path: Path, shape: Shape, clients: int, each: int) -> None:
    """Rows as a file, and whose they are in the column client."""
    with path.open("w", encoding="utf-8") as file:
        for i, messages in enumerate(rows(shape, clients * each)["messages"]):
            file.write(json.dumps({"messages": messages, "client": f"c{i % clients}"}) + "\n")


def _row(shape: Shape, words: int, draw: torch.Generator) -> list[dict[str, str]]:
    drawn: Tensor = torch.randint(shape.vocabulary - len(SPECIAL), (words,), generator=draw)
    told = [f"w{i}" for i in drawn.tolist()]
    asked = words * 2 // 3
    return [
        {"role": "user", "content": " ".join(told[:asked])},
        {"role": "assistant", "content": " ".join(told[asked:])},
    ]
