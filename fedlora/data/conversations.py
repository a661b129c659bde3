"""Rows that are conversations, from the forms in which instruction data is published.

    alpaca      instruction, input (may be empty), output
    dolly       instruction, context (may be empty), response
    messages    messages: [{"role": "user", "content": "…"}, …], as OpenAI has it
    sharegpt    conversations: [{"from": "human", "value": "…"}, …]
    columns     data.prompt, data.context (if it is set; may be empty), data.response

Any of them may have the columns system, the system's turn, and history, the turns before:
[["question", "answer"], …]. Numbers, booleans and dates are text, and so are the parts
{"type": "text", "text": "…"} of a turn, end to end.

Each becomes a list of {"role", "content"} with the roles system, user and assistant, which has at
least one answer and begins with the user's turn, a system's before it or none. What a model could
see or learn and this form has no place for, as pictures and calls of tools, is refused.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from datasets import Dataset, Features, List, Value

from fedlora.config import Data
from fedlora.data.columns import Sheet, Table, column, filled, owners_of, texts, within
from fedlora.data.turns import (
    LEARNT,
    Conversation,
    after,
    conversation,
    earlier,
    exchange,
    given,
    whole,
)
from fedlora.errors import UserError

T = TypeVar("T")

COLUMNS = {  # of each form: question, what comes with it, answer
    "alpaca": ("instruction", "input", "output"),
    "dolly": ("instruction", "context", "response"),
}
TURNS = {  # of each form: the column, and in a turn the keys of its role and its text
    "messages": ("messages", "role", "content"),
    "sharegpt": ("conversations", "from", "value"),
}
BEFORE = {"system": "system's turn", "history": "earlier turns"}  # columns of any form


def fits(sheet: Sheet, data: Data) -> bool:
    """Whether the table has the columns of a known form."""
    try:
        form = _form(sheet, "", data)
    except UserError:
        return False
    asked = (data.prompt, data.context or data.prompt, data.response)
    return form != "columns" or {*asked} <= sheet.columns.keys()


def used(sheet: Sheet, data: Data) -> dict[str, str]:
    """What is made of its columns, by name."""
    form = _form(sheet, "the data", data)
    before = {name: use for name, use in BEFORE.items() if name in sheet.columns}
    if form in TURNS:
        return {TURNS[form][0]: "turns", **before}
    names = zip(_columns(data, form), ("question", "context", "answer"), strict=True)
    return {**{name: use for name, use in names if name}, **before}


def check(sheet: Sheet, where: str, data: Data, by: str | None) -> Table:
    """The table's conversations and owners, every row whole; and where the division among clients
    goes by labels, the column data.label."""
    if not len(sheet):
        raise UserError(f"{where} has no rows. Fill it or remove it.")
    form = _form(sheet, where, data)
    read = _turns if form in TURNS else _pairs
    labelled = data.partition in ("dirichlet", "shards") and data.label in sheet.columns
    return Table(
        contents=_begun(sheet, where, read(sheet, where, data, form), form),
        names=texts(sheet, where, data.label, "data.label") if labelled else [""] * len(sheet),
        classes=[],
        owners=owners_of(sheet, where, by) if by else None,
        notes=[*sheet.notes, *_unused(sheet, data)],
    )


def label_names(tables: Mapping[str, Table], data: Data, others: bool = False) -> list[str]:
    """The labels of all tables, sorted; `others` changes nothing. Raises UserError where rows are
    divided by labels and have none."""
    labels = sorted({name for table in tables.values() for name in table.names})
    if data.partition in ("dirichlet", "shards") and labels == [""]:
        raise UserError(
            f"data.partition = {data.partition!r} divides rows by a label, and there is no column "
            f"{data.label!r}: set data.label to one (as category), or choose another data.partition"
        )
    return labels


def together(tables: Sequence[Table], labels: Sequence[str]) -> Dataset:
    """The rows of all tables, labels as indices into `labels`, 0 for those that it lacks."""
    index = {name: i for i, name in enumerate(labels)}
    columns = {
        "messages": [talk for table in tables for talk in table.contents],
        "label": [index.get(name, 0) for table in tables for name in table.names],
    }
    message = {"role": Value("string"), "content": Value("string")}
    return Dataset.from_dict(columns, Features(messages=List(message), label=Value("int64")))


def _form(sheet: Sheet, where: str, data: Data) -> str:
    """data.format, or the one whose columns the table has."""
    if data.format != "auto":
        return data.format
    there = sheet.columns.keys()
    for form, (name, _, _) in TURNS.items():
        if name in there:
            return form
    for form, (question, _, answer) in COLUMNS.items():
        if {question, answer} <= there:
            return form
    if {data.prompt, data.response} <= there:
        return "columns"
    raise UserError(
        f"{where} has the columns {', '.join(there)}, which are those of no known "
        "form of conversations (Alpaca: instruction, output; Dolly: instruction, response; OpenAI: "
        "messages; ShareGPT: conversations). Name its columns: data.format=columns data.prompt=… "
        f"data.response=…{within(sheet)}"
    )


def _columns(data: Data, form: str) -> tuple[str, str | None, str]:
    """Of a form without turns: question, what comes with it, answer."""
    return (data.prompt, data.context, data.response) if form == "columns" else COLUMNS[form]


def _unused(sheet: Sheet, data: Data) -> list[str]:
    """Notes of the columns, and of the keys of turns, of which nothing is learnt."""
    known = {*used(sheet, data), data.by, data.label}
    rest = [k for k, values in sheet.columns.items() if k not in known and any(values[:])]
    notes = [f"columns that are no part of the conversations: {', '.join(rest)}"] if rest else []
    if (form := _form(sheet, "the data", data)) in TURNS:
        name, *read = TURNS[form]
        if keys := sorted(given(sheet.columns.get(name, ())) - {*read, *LEARNT}):
            notes.append(f"keys of turns of which nothing is learnt: {', '.join(keys)}")
    return notes


def _turns(sheet: Sheet, where: str, data: Data, form: str) -> list[Conversation]:
    """A list of turns a row."""
    name, role, content = TURNS[form]
    values = column(sheet, where, name, "data.format")
    return _each(lambda turns: conversation(turns, role, content), where, name, values)


def _pairs(sheet: Sheet, where: str, data: Data, form: str) -> list[Conversation]:
    """One question and one answer a row; what comes with the question stands below it."""
    question, context, answer = _columns(data, form)
    prompts = texts(sheet, where, question, "data.prompt")
    answers = texts(sheet, where, answer, "data.response")
    if context and context not in sheet.columns and form == "columns":
        column(sheet, where, context, "data.context")  # says that it is not there
    extra = _optional(sheet, where, context) if context else [""] * len(sheet)
    return [
        exchange(f"{prompt}\n\n{more}" if more else prompt, reply)
        for prompt, more, reply in zip(prompts, extra, answers, strict=True)
    ]


def _begun(sheet: Sheet, where: str, talks: list[Conversation], form: str) -> list[Conversation]:
    """With what the columns system and history have before them; every one is whole."""
    systems = _optional(sheet, where, "system")
    histories: Sequence[Any] = sheet.columns.get("history", [None] * len(sheet))
    before = _each(earlier, where, "history", histories[:])
    name = TURNS[form][0] if form in TURNS else "system"
    return _each(lambda *parts: whole(after(*parts)), where, name, talks, systems, before)


def _optional(sheet: Sheet, where: str, name: str) -> list[str]:
    """The texts of a column, "" where it or a value of it is not there."""
    values = sheet.columns.get(name)
    return [""] * len(sheet) if values is None else _each(filled, where, name, values[:])


def _each(make: Callable[..., T], where: str, name: str, *columns: Sequence[Any]) -> list[T]:
    """Made of the values of each row; what is wrong with them is said with the column's name."""
    made: list[T] = []
    try:
        for values in zip(*columns, strict=True):
            made.append(make(*values))
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{where}: row {len(made) + 1} has in the column {name!r} {error}. Mend or remove it."
        ) from None
    return made
