"""Rows are shown as they are trained on: held against the tokens and losses of training itself."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fedlora import settings
from fedlora.check import tokens
from fedlora.resident import Resident
from fedlora.tasks.instruction import Instruction
from fedlora.tasks.likelihood import IGNORED
from strategies import load
from tests.federation import World
from tests.fedlora.tasks.talk import instruction, save, turns


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Instruction:
    """Whose tokens are words; rows of up to 20."""
    return instruction(save(tmp_path_factory.mktemp("words")), data__max_length=20)


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Instruction:
    """Whose tokens are bytes, so that an é is two."""
    folder = tmp_path_factory.mktemp("bytes")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate(["</s>", *alphabet])}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    config = LlamaConfig(vocab_size=len(vocabulary), num_attention_heads=1, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)
    return instruction(folder)


def test_what_is_learnt_is_marked_and_nothing_else(words: Instruction) -> None:
    """Two answers with what ends each; between them what is only read."""
    rows = Dataset.from_dict({"messages": [turns("what", "red", "has", "green blue")]})
    (row,) = tokens.shown(words, rows)
    assert [(p.text.split(), p.learnt) for p in row.pieces] == [
        (["<|", "user", "|>", "what", "</s>", "<|", "assistant", "|>"], False),
        (["red", "</s>"], True),
        (["<|", "user", "|>", "has", "</s>", "<|", "assistant", "|>"], False),
        (["green", "blue"], True),
    ]
    assert row.cut and not row.label  # its end, at twenty tokens


def test_the_pieces_are_the_row_s_tokens_and_its_losses(letters: Instruction) -> None:
    """End to end they are what the tokens say, and the learnt ones are those with a target; also
    where a character is two tokens."""
    rows = Dataset.from_dict({"messages": [turns("café?", "où, déjà")]})
    encoded = letters.encode(rows)
    (row,) = tokens.shown(letters, rows)
    assert "".join(p.text for p in row.pieces) == letters.chat.text(rows[0]["messages"])
    targets = encoded.inputs["labels"][encoded.inputs["labels"] != IGNORED]
    learnt = "".join(p.text for p in row.pieces if p.learnt)
    assert learnt == letters.tokenizer.decode(targets) == "où, déjà</s>"


def test_a_label_is_what_is_learnt_of_a_text(world: World, tmp_path: Path) -> None:
    """And what the tokenizer does not know is shown as the model sees it."""
    tree = world.tree(tmp_path, {"data.max_length": 6})
    resident = Resident(*settings.resolve(tree, load))
    given = {"text": ["cbad0 nothing", "cgood0 " * 9], "label": [0, 1]}
    found = tokens.shown(resident.task, Dataset.from_dict(given))
    assert [[p.text for p in row.pieces] for row in found] == [
        ["[CLS] cbad0 [UNK] [SEP]"],
        ["[CLS] cgood0 cgood0 cgood0 cgood0 [SEP]"],
    ]
    assert [(row.label, row.cut) for row in found] == [("bad", False), ("good", True)]


def test_lengths_are_those_of_all_owners_rows(world: World, tmp_path: Path) -> None:
    """Eight tokens each: six words and two ends, of which a limit of six cuts every row."""
    for limit, length, cut in ((16, 8, 0), (6, 6, 155)):
        tree = world.tree(tmp_path, {"data.max_length": limit})
        resident = Resident(*settings.resolve(tree, load))
        assert tokens.lengths(resident) == tokens.Lengths(length, length, length, cut, 155, None)


def test_the_learnt_share_is_of_all_tokens(words: Instruction) -> None:
    """Three of eleven: an answer of two words, and its end."""
    encoded = words.encode(Dataset.from_dict({"messages": [turns("what", "it is")]}))
    owner = type("Owner", (), {"table": encoded})()
    assert tokens.lengths(owner).learnt == pytest.approx(3 / 11)
    assert int(torch.diff(torch.from_numpy(encoded.starts))[0]) == 11
