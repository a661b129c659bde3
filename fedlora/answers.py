"""What a model answers to rows of a federation, and how it reads beside what is right."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from rich import box
from rich.table import Table
from rich.text import Text

from fedlora import lines
from fedlora.errors import UserError
from fedlora.generation import Speaker
from fedlora.streams import stream
from fedlora.tasks.chat import Messages
from fedlora.untrusted import block

SHOWN = 3  # rows of a table
LETTERS = 400  # of a text in a table


@dataclass(frozen=True)
class Answer:
    """One line of answers.jsonl. `row` counts the test rows from 0; `prompt` is the conversation
    up to where the answer begins, its only turn as it is."""

    round: int
    row: int
    prompt: str
    reference: str
    answer: str


def answer(speaker: Speaker, rows: Dataset, seed: int, number: int) -> list[Answer]:
    """The last answer of some conversations, as the model says it after a round: as many rows as
    `generate.rows` says, drawn from the seed among those that fit into the model's context.

    Raises:
        UserError: there are no such rows.
    """
    picked = chosen(speaker, rows, seed)
    talks = [rows[i]["messages"] for i in picked]
    asked = [_asked(talk) for talk in talks]
    draws = [stream(seed, "generate", i) for i in picked]
    said = speaker.answers(asked, draws)
    return [
        Answer(number, i, _prompt(before), talk[len(before)]["content"], text)
        for i, talk, before, text in zip(picked, talks, asked, said, strict=True)
    ]


def chosen(speaker: Speaker, rows: Dataset, seed: int) -> list[int]:
    """The rows that `answer` has answered. Raises UserError where there are none."""
    order = torch.randperm(len(rows), generator=stream(seed, "generate", "rows")).tolist()
    found: list[int] = []
    for i in order:
        if len(found) == speaker.settings.rows:
            break
        if speaker.fits(_asked(rows[i]["messages"])):
            found.append(i)
    if not found:
        raise UserError(
            f"generate.rows = {speaker.settings.rows}, but of {len(rows):,} test rows none fits "
            f"into the model's context with an answer of {speaker.settings.max_new_tokens} tokens: "
            "set data.test above 0, generate.max_new_tokens lower, or generate.rows to 0"
        )
    return sorted(found)


def write(found: Sequence[Answer]) -> str:
    """As answers.jsonl has them."""
    return "".join(json.dumps(asdict(a), ensure_ascii=False) + "\n" for a in found)


def read(path: Path) -> list[Answer]:
    """The answers of a run, none where there is no file."""
    return [Answer(**row) for row in lines.read(path, lines.ANSWERS)] if path.is_file() else []


def side_by_side(found: Sequence[Answer]) -> Table:
    """Some rows that were answered first and last: what was asked, what is right, both answers."""
    first, last = (when(a.round for a in found) for when in (min, max))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_lines=True)
    columns = ["asked", "right"] + [f"round {n}" for n in dict.fromkeys((first, last))]
    for name in columns:
        table.add_column(name, ratio=1, overflow="fold")
    by = {(a.round, a.row): a for a in found}
    for row in [a.row for a in found if a.round == last][:SHOWN]:
        there = [by[n, row] for n in dict.fromkeys((first, last)) if (n, row) in by]
        texts = [there[-1].prompt, there[-1].reference, *(a.answer for a in there)]
        table.add_row(*(Text(shortened(text)) for text in texts))
    return table


def shortened(text: str) -> str:
    """A text as it fits into a table, without what would steer the terminal."""
    shown = block(text[: LETTERS + 1])
    return shown if len(shown) <= LETTERS else shown[: LETTERS - 1] + "…"


def _asked(talk: Any) -> Messages:
    """The conversation up to its last answer."""
    last = max(i for i, message in enumerate(talk) if message["role"] == "assistant")
    return talk[:last]


def _prompt(asked: Messages) -> str:
    if len(asked) == 1:
        return asked[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in asked)
