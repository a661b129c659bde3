"""How long a row may be and what pads it: held against models that are tried."""

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import (
    AutoModel,
    BertConfig,
    DistilBertConfig,
    Gemma3Config,
    GPT2Config,
    LlamaConfig,
    MPNetConfig,
    MptConfig,
    OPTConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
    T5Config,
    XLNetConfig,
)

from fedlora import limits
from fedlora.errors import UserError

WORDS = ["one", "two", "<unk>", "<s>", "</s>", "<pad>", "<late>"]
SMALL = {"vocab_size": 12, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
BERT = {**SMALL, "num_hidden_layers": 1, "max_position_embeddings": 20}
TABLES = {
    "bert": (BertConfig(**BERT), 20),
    "roberta": (RobertaConfig(**BERT, pad_token_id=1), 18),
    "roberta, another pad": (RobertaConfig(**BERT, pad_token_id=4), 15),
    "mpnet": (MPNetConfig(**BERT, pad_token_id=1), 18),
    "distilbert": (
        DistilBertConfig(
            vocab_size=12, dim=16, hidden_dim=16, n_layers=1, n_heads=2, max_position_embeddings=20
        ),
        20,
    ),
    "gpt2": (GPT2Config(vocab_size=12, n_embd=16, n_layer=1, n_head=2, n_positions=20), 20),
    "opt": (
        OPTConfig(
            vocab_size=12,
            hidden_size=16,
            word_embed_proj_dim=16,
            ffn_dim=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=20,
        ),
        20,
    ),
    "mpt": (MptConfig(vocab_size=12, d_model=16, n_layers=1, n_heads=2, max_seq_len=20), 20),
}
BOUNDLESS = {"xlnet": XLNetConfig(), "t5": T5Config()}


def tokenizer(words: list[str] = WORDS, **special: str) -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(words)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=words[0]))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


@pytest.mark.parametrize("name", TABLES)
def test_a_row_is_as_long_as_the_model_reads(name: str) -> None:
    """And not one token longer, where the tokenizer says nothing: it is tried."""
    config, most = TABLES[name]
    model: Any = AutoModel.from_config(config).eval()
    assert limits.longest(48, config, tokenizer()) == most
    assert limits.longest(most - 1, config, tokenizer()) == most - 1
    ids = torch.full((1, most), 7)
    model(input_ids=ids)
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.cat([ids, ids[:, :1]], dim=1))


@pytest.mark.parametrize("name", BOUNDLESS)
def test_a_model_of_any_length_reads_what_is_asked_for(name: str) -> None:
    assert limits.longest(5000, BOUNDLESS[name], tokenizer()) == 5000


def test_the_tokenizer_s_own_limit_counts_too_and_that_of_a_model_inside_another() -> None:
    assert limits.longest(48, LlamaConfig(), tokenizer(model_max_length=7)) == 7
    inside = {**BERT, "num_key_value_heads": 2, "head_dim": 8}
    assert limits.longest(48, Gemma3Config(text_config=inside), tokenizer()) == 20
    assert limits.words(Gemma3Config(text_config=inside)) == 12


@pytest.mark.parametrize(
    ("special", "settings", "pad"),
    [
        ({"pad_token": "<pad>", "eos_token": "</s>"}, {}, "<pad>"),
        ({"eos_token": "</s>", "unk_token": "<unk>"}, {}, "</s>"),
        ({"unk_token": "<unk>", "bos_token": "<s>"}, {"eos_token_id": None}, "<s>"),
        ({"unk_token": "<unk>"}, {"eos_token_id": None}, "<unk>"),
        # the configuration's, where the tokenizer holds them to be special
        ({"unk_token": "<unk>", "bos_token": "<s>"}, {"eos_token_id": [3, 2]}, "<s>"),
        ({"unk_token": "<unk>"}, {"eos_token_id": [0, 1]}, "<unk>"),
        ({"unk_token": "<unk>", "bos_token": "<s>"}, {"pad_token_id": 3}, "<s>"),
        ({"eos_token": "</s>"}, {"pad_token_id": -1}, "</s>"),
        # beyond the model's embeddings
        ({"pad_token": "<late>", "eos_token": "</s>"}, {}, "</s>"),
        ({"pad_token": "<late>"}, {"eos_token_id": None}, None),
        ({}, {"eos_token_id": None}, None),
        ({}, {"eos_token_id": 1, "pad_token_id": 0}, None),  # words of texts
    ],
)
def test_rows_are_padded_with_a_token_that_the_model_has_and_no_text_becomes(
    special: dict[str, str], settings: dict[str, Any], pad: str | None
) -> None:
    made, config = tokenizer(**special), PretrainedConfig(vocab_size=6, **settings)
    found = limits.padding(config, made)
    assert (None if found is None else made.convert_ids_to_tokens(found)) == pad


def test_the_end_of_a_text_is_the_tokenizer_s_else_the_configuration_s() -> None:
    several = PretrainedConfig(eos_token_id=[4, 3])
    assert limits.ending(several, tokenizer(eos_token="<s>")) == 3
    assert limits.ending(several, tokenizer(bos_token="<s>")) == 3
    assert limits.ending(several, tokenizer()) is None
    assert limits.ends(several) == [4, 3] and limits.ends(PretrainedConfig(eos_token_id=0)) == [0]


def test_a_token_that_the_model_has_no_embedding_of_is_named() -> None:
    """With the way out; and what is no token at all is said to be none."""
    with pytest.raises(UserError, match=r"'<late>'.*number 6.*6 embeddings.*resize_token_emb"):
        limits.check([1, 6, 2], 6, tokenizer())
    limits.check([1, 5, 2], 6, tokenizer())
    with pytest.raises(UserError, match="no token of it"):
        limits.check([], 6, tokenizer())
