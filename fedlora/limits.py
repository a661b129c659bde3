"""What a model can be given: how many tokens a row has, which ones, and with which it is padded."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModel, PretrainedConfig, PreTrainedTokenizerBase

from fedlora.errors import UserError

# Where configurations say how many places a model has; most others translate theirs to the first.
PLACES = ("max_position_embeddings", "max_encoder_position_embeddings", "max_seq_len")


def places(config: PretrainedConfig) -> int | None:
    """How many places for tokens a model has; None where it has any number."""
    own = config.get_text_config()
    said = [getattr(own, name, None) for name in PLACES]
    return min((n for n in said if isinstance(n, int) and n > 0), default=None)


def longest(asked: int, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens of the longest row: as many as are asked for, where tokenizer and model go so far."""
    there = places(config)
    known = [n for n in (tokenizer.model_max_length, there) if isinstance(n, int) and n > 0]
    most, before = min(asked, *known), 1 + (getattr(config, "pad_token_id", None) or 0)
    if there is None or most <= there - before or not _counts_padding(config, there):
        return most
    return there - before


def _counts_padding(config: PretrainedConfig, there: int) -> bool:
    """Whether the first places are the padding token's, up to its number, as RoBERTa has it: then
    the table of places knows that token."""
    try:
        with torch.device("meta"):
            model: Any = AutoModel.from_config(config)
        words = model.get_input_embeddings()
    except Exception:  # no such model, or one without a table of words
        return False
    return any(
        getattr(module, "padding_idx", None) is not None and len(module.weight) == there
        for module in model.modules()
        if module is not words and hasattr(module, "weight")
    )


def words(config: PretrainedConfig) -> int | None:
    """How many tokens a model has embeddings of, as far as its configuration says."""
    count = getattr(config.get_text_config(), "vocab_size", None)
    return count if isinstance(count, int) else None


def padding(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that rows are padded with: the tokenizer's, else the one that ends a text, else
    another that no text becomes; None where the model has an embedding of none."""
    found, unknown = special(tokenizer), tokenizer.unk_token_id
    own = getattr(config.get_text_config(), "pad_token_id", None)
    order = [tokenizer.pad_token_id, tokenizer.eos_token_id, own, *ends(config)]
    order += [*sorted(found - {unknown}), unknown]
    known = words(config)
    return next((i for i in order if i in found and (known is None or i < known)), None)


def ending(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that ends a text: the tokenizer's, else the configuration's; None where neither
    knows one."""
    found = special(tokenizer)
    return next((i for i in (tokenizer.eos_token_id, *ends(config)) if i in found), None)


def ends(config: PretrainedConfig) -> list[int]:
    """The tokens that end a text, as the configuration has it: one, several or none."""
    own = getattr(config.get_text_config(), "eos_token_id", None)
    return [i for i in (own if isinstance(own, list) else [own]) if i is not None]


def check(ids: Sequence[int], known: int | None, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises UserError where there is no token, or the model has no embedding of one."""
    if not len(ids):
        raise UserError("the tokenizer makes no token of it: remove it")
    largest = max(ids)
    if known is not None and largest >= known:
        raise UserError(
            f"the model does not know the token {tokenizer.convert_ids_to_tokens(largest)!r} of "
            f"its tokenizer (number {largest:,}, and it has {known:,} embeddings from 0): save it "
            "anew after model.resize_token_embeddings(len(tokenizer)), or take the tokenizer that "
            "it was trained with"
        )


def special(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Tokens that are no part of a text's words."""
    return {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
