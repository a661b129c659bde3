"""Attention without a mask where it needs none: what the kernels are given, and that it is the
same."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BloomConfig,
    Gemma2Config,
    Gemma3Config,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    OPTConfig,
    PreTrainedConfig,
)

from fedlora.config import MINILM
from fedlora.streams import forked
from fedlora.tasks.masks import looks_back
from tests.fedlora.tasks.made import classification
from tests.fedlora.tasks.talk import save
from tests.fedlora.trained import rows, task

V, T = 50, 12
SMALL: dict[str, Any] = {
    "vocab_size": V, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 2, "max_position_embeddings": 16,
}  # fmt: skip
WINDOW = {"num_key_value_heads": 2, "sliding_window": 4}
# Rotated, learnt and slanted positions; positions that are counted by the mask; windows; no
# attention at all.
BACKWARD: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SMALL),
    "mistral": MistralConfig(**SMALL, **WINDOW),
    "gemma2": Gemma2Config(**SMALL, **WINDOW, head_dim=8),
    "gemma3, a part of one that sees": Gemma3Config(
        text_config={**SMALL, **WINDOW, "head_dim": 8},
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
    ),
    "gpt2": GPT2Config(vocab_size=V, n_embd=16, n_layer=2, n_head=2, n_positions=16),
    "opt": OPTConfig(**SMALL, ffn_dim=16, word_embed_proj_dim=16),
    "bloom": BloomConfig(vocab_size=V, hidden_size=16, n_layer=2, n_head=2),
    "mamba": MambaConfig(vocab_size=V, hidden_size=16, num_hidden_layers=2, state_size=4),
    "bert": BertConfig(**SMALL, is_decoder=True),
}


def model(config: PreTrainedConfig) -> Any:
    with forked(0, "masks"):
        return AutoModelForCausalLM.from_config(config).double().eval()


@pytest.mark.parametrize("name", BACKWARD)
def test_a_row_padded_on_the_right_is_the_same_without_a_mask(name: str) -> None:
    """In float64, by every kind of position and of attention: as it is alone."""
    own = model(BACKWARD[name])
    assert looks_back(own)
    with forked(0, "ids"):
        ids = torch.randint(3, V, (2, T))
    with torch.inference_mode():
        without = own(input_ids=ids, use_cache=False).logits
        alone = own(input_ids=ids[:1, :7], use_cache=False).logits
    torch.testing.assert_close(without[:1, :7], alone, rtol=1e-6, atol=1e-9)


def test_a_model_that_looks_ahead_is_told() -> None:
    assert not looks_back(model(BertConfig(**SMALL)))


@pytest.fixture
def attended(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[bool, bool]]]:
    """Of each call of the attention kernel: whether it got a mask, and whether it is causal."""
    seen: list[tuple[bool, bool]] = []
    kernel = F.scaled_dot_product_attention

    def spied(*args: Any, attn_mask: Any = None, is_causal: bool = False, **more: Any) -> Any:
        seen.append((attn_mask is not None, is_causal))
        return kernel(*args, attn_mask=attn_mask, is_causal=is_causal, **more)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spied)
    yield seen


def test_a_language_model_s_kernels_get_no_mask(
    tmp_path: Path, attended: list[tuple[bool, bool]]
) -> None:
    """Rows of many lengths in one pass; each row's loss is what it is in a pass of its own."""
    own = task(save(tmp_path))
    made, encoded = own.model(0), rows(own)
    attended.clear()
    together = own.losses(made, own.batch(encoded, range(len(encoded))))
    assert set(attended) == {(False, True)}
    alone = torch.cat([own.losses(made, own.batch(encoded, [i])) for i in range(len(encoded))])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
    own.backward = False  # the truth: with a mask
    attended.clear()
    masked = own.losses(made, own.batch(encoded, range(len(encoded))))
    assert set(attended) == {(True, False)}
    torch.testing.assert_close(together, masked, rtol=1e-5, atol=1e-6)


def test_an_encoder_gets_one_where_rows_are_padded(attended: list[tuple[bool, bool]]) -> None:
    """What stands behind a token is read by it."""
    own = classification(MINILM, ["calm", "glad"], 16)
    found, encoded = (
        own.model(0),
        own.encode(
            Dataset.from_dict(
                {"text": ["one two three four five six", "one"] * 2, "label": [0] * 4}
            )
        ),
    )
    for chosen, masked in (([0, 2], False), ([0, 1], True)):
        attended.clear()
        own.losses(found, own.batch(encoded, chosen))
        assert set(attended) == {(masked, False)}
