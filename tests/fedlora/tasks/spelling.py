"""Tokenizers of the kinds that language models have, trained on a few words."""

from collections.abc import Callable
from typing import Any

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

TEXT = "what colour has the thing it is red green blue. Assistant: user system an answer 7 42 <b>"
SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
LETTERS = [chr(i) for i in range(32, 127)] + ["\n"]
BYTES = [f"<0x{i:02X}>" for i in range(256)]


def bytewise(trims: bool = False) -> Tokenizer:
    """GPT-2's kind, RoBERTa's where offsets leave out a token's space."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.post_processor = processors.ByteLevel(trim_offsets=trims)
    made.decoder = decoders.ByteLevel()
    return _trained(made, trainers.BpeTrainer, 400, pre_tokenizers.ByteLevel.alphabet())


def sentences() -> Tokenizer:
    """Llama 2's kind: spaces are part of words, unknown letters are bytes."""
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return _trained(made, trainers.BpeTrainer, 600, LETTERS, BYTES)


def likely() -> Tokenizer:
    """T5's kind, which changes letters, and so lengths, before it looks for tokens."""
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    return _trained(made, trainers.UnigramTrainer, 120, LETTERS, unk_token="<unk>")


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "bytes": bytewise,
    "trimmed bytes": lambda: bytewise(trims=True),
    "sentences": sentences,
    "likely": likely,
}


def fast(kind: str) -> PreTrainedTokenizerFast:
    """As a model's folder would have it."""
    return PreTrainedTokenizerFast(
        tokenizer_object=KINDS[kind](), bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def _trained(
    made: Tokenizer, kind: Any, size: int, letters: list[str], more: Any = (), **settings: Any
) -> Tokenizer:
    trainer = kind(
        vocab_size=size,
        initial_alphabet=letters,
        special_tokens=[*SPECIAL, *more],
        show_progress=False,
        **settings,
    )
    made.train_from_iterator([TEXT] * 3, trainer)
    return made
