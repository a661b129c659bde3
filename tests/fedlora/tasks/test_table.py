"""The file of tokens, against the table that it was made of."""

import os
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file

from fedlora.config import MINILM
from fedlora.tasks.encoded import Encoded
from fedlora.tasks.table import key, mapped
from fedlora.tensorfiles import save
from tests.fedlora.tasks.made import classification

ROWS = Dataset.from_dict({"text": ["one", "a longer text", "two words"], "label": [0, 1, 1]})
TASK = classification(MINILM, ["no", "yes"], 8)


def never() -> Encoded:
    raise AssertionError("tokenised again")


def make() -> Encoded:
    return TASK.encode(ROWS)


def same(one: Encoded, other: Encoded) -> bool:
    batches = [TASK.batch(table, [2, 0, 1]) for table in (one, other)]
    return all(torch.equal(batches[0][k], batches[1][k]) for k in batches[0].keys() | batches[1])


def file_of(folder: Path) -> Path:
    (path,) = folder.iterdir()  # nothing is left aside
    return path


def test_rows_are_tokenised_by_the_first_and_read_by_the_others(tmp_path):
    """One file, made once, whose batches are those of the rows themselves."""
    first = mapped(tmp_path / "tokens", "k", make)
    second = mapped(tmp_path / "tokens", "k", never)
    assert same(first, make()) and same(second, make())
    assert len(second) == 3 and second.length(1) == make().length(1)
    assert file_of(tmp_path / "tokens").name == "tokens-k.safetensors"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_processes_share_the_pages(tmp_path):
    """The tokens are the file's own pages, and their use makes none of them this process's own."""
    table = mapped(tmp_path, "k", make)
    TASK.batch(table, [0, 1, 2])
    path = os.fspath(file_of(tmp_path))
    lines = Path("/proc/self/smaps").read_text().splitlines()
    (start,) = (i for i, line in enumerate(lines) if line.endswith(path))
    low, high = (int(x, 16) for x in lines[start].split()[0].split("-"))
    for tensor in (*table.inputs.values(), table.labels, torch.from_numpy(table.starts)):
        assert low <= tensor.data_ptr() < high
    own = next(line for line in lines[start:] if line.startswith("Anonymous:"))
    assert own.split()[1] == "0"


def test_a_damaged_or_foreign_file_is_made_anew(tmp_path):
    """One flipped bit, a file cut short, another table's file under this name, and one that tells
    nothing of itself: none is used."""
    mapped(tmp_path, "k", make)
    path = file_of(tmp_path)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-3] ^= 1
    mapped(tmp_path / "other", "o", make)
    save(load_file(path), tmp_path / "bare")
    foreign = file_of(tmp_path / "other").read_bytes()
    for wrong in (bytes(flipped), whole[:-9], b"", foreign, (tmp_path / "bare").read_bytes()):
        path.unlink()
        path.write_bytes(wrong)
        made = []
        assert same(mapped(tmp_path, "k", lambda made=made: made.append(1) or make()), make())
        assert made and same(mapped(tmp_path, "k", never), make())


def test_the_key_says_what_the_tokens_depend_on():
    """The same rows and task have the same key; another text, label, order, length or tokenizer
    another."""
    changed = ROWS.to_dict()
    changed["text"][1] += "!"
    tokenizer = classification(MINILM, ["no", "yes"], 8)
    tokenizer.tokenizer.add_tokens(["longer text"])
    found = [
        key(classification(MINILM, ["no", "yes"], 8), Dataset.from_dict(ROWS.to_dict())),
        key(TASK, Dataset.from_dict(changed)),
        key(TASK, Dataset.from_dict({**ROWS.to_dict(), "label": [1, 1, 1]})),
        key(TASK, ROWS.select([1, 0, 2])),
        key(classification(MINILM, ["no", "yes"], 9), ROWS),
        key(tokenizer, ROWS),
    ]
    assert found[0] == key(TASK, ROWS)
    assert len(set(found)) == len(found)
