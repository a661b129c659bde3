"""Rows as the model reads them, and how long they are.

What is shown is made of the very tokens that a run trains on, not of the text that they came from:
special tokens, lower case, unknown words and cut ends are seen as the model sees them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from datasets import Dataset
from torch import Tensor

from fedlora.resident import Resident
from fedlora.tasks import Task
from fedlora.tasks.likelihood import IGNORED

IDS, LEARNT = "input_ids", "labels"  # of encoded rows


@dataclass(frozen=True)
class Piece:
    """Neighbouring tokens as text, and whether a run learns to say them."""

    text: str
    learnt: bool


@dataclass(frozen=True)
class Shown:
    """A row: its pieces; the label that is learnt of it, if it is one; whether its end is cut."""

    pieces: list[Piece]
    label: str
    cut: bool


@dataclass(frozen=True)
class Lengths:
    """Tokens a row: the shortest, the median, the longest, in tokens; how many rows are `cut`, of
    how many; and the share of all tokens that is learnt (None where labels are)."""

    shortest: int
    median: int
    longest: int
    cut: int
    rows: int
    learnt: float | None


def shown(task: Task, rows: Dataset) -> list[Shown]:
    """Some rows as their tokens say them."""
    table = task.encode(rows)
    return [
        Shown(
            list(_pieces(task, table, i)),
            task.labels[label] if task.labels and (label := int(table.labels[i])) >= 0 else "",
            bool(table.cut[i]),
        )
        for i in range(len(table))
    ]


def lengths(resident: Resident) -> Lengths:
    """Of all rows that clients own, as they are fed."""
    table = resident.table
    found = np.diff(table.starts)[table.rows]
    targets = table.inputs.get(LEARNT)
    return Lengths(
        int(found.min()),
        int(np.median(found)),
        int(found.max()),
        table.truncated,
        len(table),
        None if targets is None else float((targets != IGNORED).double().mean()),
    )


def _pieces(task: Task, table: Any, i: int) -> Iterator[Piece]:
    """Pieces whose texts are, one after another, what the row's tokens decode to."""
    ids: Tensor = table.tokens(IDS, i)
    if LEARNT in table.inputs:
        marks = (table.tokens(LEARNT, i) != IGNORED).tolist()
    else:
        marks = [False] * len(ids)
    said, end = "", 0
    for learnt, group in groupby(marks):
        start, end = end, end + len(list(group))
        whole = _decoded(task, ids[:end])
        # A character of several tokens may be cut between two pieces.
        text = whole[len(said) :] if whole.startswith(said) else _decoded(task, ids[start:end])
        said = whole
        yield Piece(text, learnt)


def _decoded(task: Task, ids: Tensor) -> str:
    text: Any = task.tokenizer.decode(
        ids.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    return str(text)
