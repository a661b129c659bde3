"""Rows that are conversations, from the forms in which instruction data is published.

    alpaca      instruction, input (may be empty), output
    dolly       instruction, context (may be empty), response
    messages    messages: [{"role": "user", "content": "…"}, …], as OpenAI has it
    sharegpt    conversations: [{"from": "human", "value": "…"}, …]
    columns     data.prompt, data.context (if it is set; may be empty), data.response

Each becomes a list of {"role", "content"} with the roles system, user and assistant, which has at
least one answer and begins with the user's turn, a system's before it or none.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset, Features, List, Value

from fedlora.config import Data
from fedlora.data.columns import Table, column, owners_of
from fedlora.errors import UserError

Message = dict[str, str]
Conversation = list[Message]

COLUMNS = {  # of each form: question, what comes with it, answer
    "alpaca": ("instruction", "input", "output"),
    "dolly": ("instruction", "context", "response"),
}
TURNS = {  # of each form: the column, and in a turn the keys of its role and its text
    "messages": ("messages", "role", "content"),
    "sharegpt": ("conversations", "from", "value"),
}
ROLES = {
    "system": "system",
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "chatgpt", "bot"), "assistant"),
}


def fits(table: Dataset, data: Data) -> bool:
    """Whether the table has the columns of a known form."""
    try:
        form = _form(table, "", data)
    except UserError:
        return False
    asked = (data.prompt, data.context or data.prompt, data.response)
    return form != "columns" or {*asked} <= {*table.column_names}


def used(table: Dataset, data: Data) -> dict[str, str]:
    """What is made of its columns, by name."""
    form = _form(table, "the data", data)
    if form in TURNS:
        return {TURNS[form][0]: "turns"}
    names = (data.prompt, data.context, data.response) if form == "columns" else COLUMNS[form]
    return {k: use for k, use in zip(names, ("question", "context", "answer"), strict=True) if k}


def check(table: Dataset, where: str, data: Data, by: str | None) -> Table:
    """The table's conversations and owners, every row whole; and where the division among clients
    goes by labels, the column data.label."""
    if not len(table):
        raise UserError(f"{where} has no rows. Fill it or remove it.")
    form = _form(table, where, data)
    if form in TURNS:
        name, role, text = TURNS[form]
        contents = [
            _checked(value, role, text, f"{where}: row {row} has in the column {name!r}")
            for row, value in enumerate(column(table, where, name, "data.format"), start=1)
        ]
    else:
        contents = _pairs(table, where, data, form)
    labelled = data.partition in ("dirichlet", "shards") and data.label in table.column_names
    names = [str(v) for v in column(table, where, data.label, "data.label")] if labelled else []
    return Table(
        contents=contents,
        names=names or [""] * len(contents),
        classes=[],
        owners=owners_of(table, where, by) if by else None,
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


def _form(table: Dataset, where: str, data: Data) -> str:
    """data.format, or the one whose columns the table has."""
    if data.format != "auto":
        return data.format
    there = set(table.column_names)
    for form, (name, _, _) in TURNS.items():
        if name in there:
            return form
    for form, (question, _, answer) in COLUMNS.items():
        if {question, answer} <= there:
            return form
    if {data.prompt, data.response} <= there:
        return "columns"
    raise UserError(
        f"{where} has the columns {', '.join(table.column_names)}, which are those of no known "
        "form of conversations (Alpaca: instruction, output; Dolly: instruction, response; OpenAI: "
        "messages; ShareGPT: conversations). Name its columns: data.format=columns data.prompt=… "
        "data.response=…"
    )


def _pairs(table: Dataset, where: str, data: Data, form: str) -> list[Conversation]:
    """One question and one answer a row; what comes with the question stands below it."""
    chosen = (data.prompt, data.context, data.response)
    question, context, answer = chosen if form == "columns" else COLUMNS[form]
    prompts = _texts(table, where, question, "data.prompt")
    answers = _texts(table, where, answer, "data.response")
    extra: list[Any] = [None] * len(table)
    if context and context in table.column_names:
        extra = table[context][:]
    elif context and form == "columns":
        column(table, where, context, "data.context")  # says that it is not there
    return [
        [
            {"role": "user", "content": f"{prompt}\n\n{more}" if _filled(more) else prompt},
            {"role": "assistant", "content": reply},
        ]
        for prompt, more, reply in zip(prompts, extra, answers, strict=True)
    ]


def _texts(table: Dataset, where: str, name: str, key: str) -> list[str]:
    values = column(table, where, name, key)
    if not all(isinstance(value, str) for value in values):
        raise UserError(
            f"{where}: the column {name!r} holds {table.features[name]}, not text. Set {key}, with "
            "data.format=columns."
        )
    return values


def _filled(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _message(turn: Any, role: str, text: str) -> Message:
    """Raises ValueError, which says what is wrong with the turn."""
    if not isinstance(turn, Mapping) or role not in turn or text not in turn:
        raise ValueError(f"a turn without {role!r} and {text!r}")
    said = str(turn[role])
    if said not in ROLES:
        raise ValueError(f"the role {said!r}, which is none of {', '.join(ROLES)}")
    if not _filled(turn[text]):
        raise ValueError(f"a turn of {said!r} without text")
    return {"role": ROLES[said], "content": turn[text]}


def _checked(turns: Any, role: str, text: str, where: str) -> Conversation:
    """A row's conversation, of turns with these keys. Raises UserError where it is none."""
    try:
        talk = [_message(turn, role, text) for turn in turns]
        roles = [message["role"] for message in talk]
        spoken = roles[1:] if roles[:1] == ["system"] else roles
        if spoken != ["user", "assistant"] * (len(spoken) // 2) + ["user"] * (len(spoken) % 2):
            raise ValueError(f"the turns {', '.join(roles)}: user and assistant are to alternate")
        if "assistant" not in roles:
            raise ValueError("no answer to learn from")
    except (ValueError, TypeError) as error:
        raise UserError(f"{where} {error}. Mend or remove it.") from None
    return talk
