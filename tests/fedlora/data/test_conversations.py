"""Conversations from every form that instruction data comes in."""

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from fedlora import data
from fedlora.config import Data
from fedlora.data.conversations import check, label_names, together
from fedlora.errors import UserError

ASKED = [
    {"role": "user", "content": "Name it.\n\nA red thing."},
    {"role": "assistant", "content": "An apple"},
]
FORMS: dict[str, dict[str, Any]] = {
    "alpaca": {"instruction": "Name it.", "input": "A red thing.", "output": "An apple"},
    "dolly": {
        "instruction": "Name it.",
        "context": "A red thing.",
        "response": "An apple",
        "category": "open_qa",
    },
    "messages": {"messages": ASKED},
    "sharegpt": {
        "conversations": [
            {"from": "human", "value": "Name it.\n\nA red thing."},
            {"from": "gpt", "value": "An apple"},
        ]
    },
    "columns": {"ask": "Name it.", "see": "A red thing.", "say": "An apple"},
}
NAMED = {"prompt": "ask", "context": "see", "response": "say"}


def table(rows: list[dict[str, Any]], **fields: Any) -> list[Any]:
    """What `check` makes of these rows."""
    return list(check(Dataset.from_list(rows), "rows.jsonl", Data(**fields), None).contents)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_conversation(form: str, tmp_path: Path) -> None:
    """Recognised by its columns, or named, and read from a file to its end: messages, in order."""
    fields = NAMED if form == "columns" else {}
    assert table([FORMS[form]], **fields) == [ASKED]
    assert table([FORMS[form]], format=form, **fields) == [ASKED]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(FORMS[form]) + "\n" for _ in range(20)), "utf-8")
    config = Data(name=str(path), partition="iid", clients=2, public=0, **fields)
    federation = data.load(config, 0, "conversations")
    assert federation.labels == [] and federation.train("client-00")[0]["messages"] == ASKED


@pytest.mark.parametrize("nothing", ["", None, " "])
def test_an_empty_input_is_no_input(nothing: str | None) -> None:
    """As most of Alpaca's rows have it."""
    (talk,) = table([FORMS["alpaca"] | {"input": nothing}])
    assert talk[0]["content"] == "Name it."
    (talk,) = table([{k: FORMS["alpaca"][k] for k in ("instruction", "output")}])
    assert talk[0]["content"] == "Name it."


def test_roles_have_their_usual_names() -> None:
    """human and gpt are user and assistant; a system's turn may come first, and a last question may
    stay open."""
    said = [("system", "Be brief."), ("human", "a"), ("gpt", "b"), ("user", "c")]
    (talk,) = table([{"conversations": [{"from": r, "value": t} for r, t in said]}])
    assert [m["role"] for m in talk] == ["system", "user", "assistant", "user"]


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([("assistant", "b")], r"row 2 .* the turns assistant: user and assistant"),
        ([("user", "a"), ("user", "b")], "alternate"),
        ([("user", "a")], "no answer to learn from"),
        ([("user", "a"), ("tool", "b")], "the role 'tool', which is none of"),
        ([("user", "a"), ("assistant", " ")], "a turn of 'assistant' without text"),
    ],
)
def test_a_row_that_is_no_conversation_is_named(turns: list[tuple[str, str]], message: str) -> None:
    """With its number, and what is wrong with it."""
    rows = [FORMS["messages"], {"messages": [{"role": r, "content": t} for r, t in turns]}]
    with pytest.raises(UserError, match=message):
        table(rows)


def test_unknown_columns_say_what_to_set() -> None:
    """Which forms there are, and how columns are named."""
    with pytest.raises(UserError, match=r"columns ask, say, .*data\.format=columns data\.prompt"):
        table([{"ask": "a", "say": "b"}])
    with pytest.raises(UserError, match=r"no column 'see'.*data\.context"):
        table([{"ask": "a", "say": "b"}], format="columns", **NAMED)
    with pytest.raises(UserError, match=r"row 1 has no value in the column 'output'"):
        table([FORMS["alpaca"] | {"output": ""}])


def test_rows_are_dealt_by_a_category_only_where_asked() -> None:
    """Dirichlet and shards need a label; the others do without."""
    rows = [FORMS["dolly"] | {"category": c} for c in "abab"]
    config = Data(partition="shards", label="category")
    one = check(Dataset.from_list(rows), "rows", config, None)
    labels = label_names({"rows": one}, config)
    assert labels == ["a", "b"] and together([one], labels)["label"][:] == [0, 1, 0, 1]
    plain = check(Dataset.from_list(rows), "rows", Data(), None)
    assert together([plain], label_names({"rows": plain}, Data()))["label"][:] == [0] * 4
    missing = Data(partition="dirichlet", label="kind")
    with pytest.raises(UserError, match=r"no column 'kind': set data\.label"):
        label_names({"rows": check(Dataset.from_list(rows), "rows", missing, None)}, missing)


def test_the_bundled_definitions_are_conversations() -> None:
    """data.name = "definitions" with the task's kind: six owners, one question and answer a row."""
    federation = data.load(Data(name="definitions"), 0, "conversations")
    assert len(federation.clients) == 6 and len(federation.test) > 0
    assert [m["role"] for m in federation.test[0]["messages"]] == ["user", "assistant"]
