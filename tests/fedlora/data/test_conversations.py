"""Conversations from every form that instruction data comes in."""

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from fedlora import data
from fedlora.config import Data
from fedlora.data import files
from fedlora.data.columns import Sheet
from fedlora.data.conversations import check, label_names, together
from fedlora.data.turns import exchange
from fedlora.errors import UserError
from tests.fedlora.data.tables import put

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
    return list(
        check(Sheet.of(Dataset.from_list(rows)), "rows.jsonl", Data(**fields), None).contents
    )


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


PAIR = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
ROLES = {"user": "question", "assistant": "answer"}
VALUES = {  # of JSON, and as text
    "7": "7",
    "1.10": "1.10",
    "true": "true",
    '[{"type": "text", "text": "one "}, {"type": "text", "text": 2}]': "one 2",
    '["one ", {"text": "two"}]': "one two",
}


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("place", ["question", "answer"])
def test_turns_of_numbers_and_parts_are_text(place: str, value: str, tmp_path: Path) -> None:
    """As the file writes them, in either turn."""
    content = {"question": '"a"', "answer": '"b"'} | {place: value}
    path = tmp_path / "rows.jsonl"
    turns = [f'{{"role": "{r}", "content": {content[k]}}}' for r, k in ROLES.items()]
    path.write_text(f'{{"messages": [{", ".join(turns)}]}}\n')
    (talk,) = check(files.read(path), "rows", Data(), None).contents
    right = {"question": "a", "answer": "b"} | {place: VALUES[value]}
    assert [m["content"] for m in talk] == list(right.values())


@pytest.mark.parametrize("ending", ["csv", "jsonl", "json", "parquet"])
def test_columns_of_numbers_and_dates_are_text(ending: str, tmp_path: Path) -> None:
    """Questions, what comes with them, and answers: whole columns, of every form of file."""
    rows = [{"ask": "double it", "see": n, "say": 2 * n} for n in range(3)]
    path = put(tmp_path / f"rows.{ending}", rows)
    fields = {"prompt": "ask", "context": "see", "response": "say"}
    talks = check(files.read(path), "rows", Data(**fields), None).contents
    assert [m["content"] for m in talks[2]] == ["double it\n\n2", "4"]
    dates = [{"prompt": "when", "response": date(2024, 1, 31)}]
    assert table(dates)[0][1]["content"] == "2024-01-31"
    assert table([{"prompt": 0.5, "response": False}])[0] == exchange("0.5", "false")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("text", [False, True], ids=["lists", "as JSON"])
def test_a_system_and_a_history_come_first(form: str, text: bool) -> None:
    """In every form, the history as JSON where a table has text alone; nothing where they are
    empty."""
    before = [["q", "a"], [1, 2]]
    history: Any = json.dumps(before) if text else before
    row = FORMS[form] | {"system": "Be brief.", "history": history}
    fields = NAMED if form == "columns" else {}
    empty = FORMS[form] | {"system": "", "history": "" if text else []}
    sheet = Sheet({name: [row[name], empty[name]] for name in row})
    first, second = check(sheet, "rows", Data(**fields), None).contents
    system = {"role": "system", "content": "Be brief."}
    assert first == [system, *exchange("q", "a"), *exchange("1", "2"), *ASKED]
    assert second == ASKED


def test_turns_as_json_in_a_table_of_text() -> None:
    """As CSV has them."""
    assert table([{"messages": json.dumps(ASKED)}]) == [ASKED]
    with pytest.raises(UserError, match="text, where a list of turns"):
        table([{"messages": "[{'role': 'user'}]"}])


IMAGE = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "x"}}]
LOST = {
    "a picture": ([PAIR[0] | {"content": IMAGE}, PAIR[1]], "a part of the type 'image_url'"),
    "a call": ([PAIR[0], PAIR[1] | {"content": None, "tool_calls": [{"id": "x"}]}], "tool_calls"),
    "a call with words": ([PAIR[0], PAIR[1] | {"function_call": {"name": "x"}}], "function_call"),
    "a thought": ([PAIR[0], PAIR[1] | {"reasoning_content": "hm"}], "reasoning_content"),
    "a reasoning": ([PAIR[0], PAIR[1] | {"reasoning": "hm"}], "reasoning"),
    "no loss": ([PAIR[0], PAIR[1] | {"loss": False}], "loss False, and all answers"),
    "weight 0": ([PAIR[0], PAIR[1] | {"weight": 0}], "weight 0, and all answers"),
    "train false": ([PAIR[0], PAIR[1] | {"train": False}], "train False, and all answers"),
    "an object": ([PAIR[0] | {"content": {"text": "a"}}, PAIR[1]], r"an object \(text\), not text"),
    "two systems": (
        [{"role": "system", "content": "x"}, *PAIR],
        "other than the one in the column 'system'",
    ),
    "half a pair": ([{"role": "system", "content": "Be brief."}, *PAIR], "an earlier question"),
}


@pytest.mark.parametrize("case", LOST)
def test_what_would_be_lost_is_refused(case: str) -> None:
    """What a model could see or learn, and conversations here have no place for."""
    turns, says = LOST[case]
    rows = {"messages": [PAIR, turns], "system": [None, "Be brief."]}
    if case == "half a pair":
        rows["history"] = [None, [["q"]]]
    with pytest.raises(UserError, match=f"row 2 has .*{says}"):
        check(Sheet(rows), "rows", Data(), None)


def test_keys_without_a_value_are_nothing() -> None:
    """As tables have them that hold a list of every key; an answer of weight 1 is like others."""
    more = {"tool_calls": None, "images": [], "weight": None, "id": "x"}
    turns = [PAIR[0] | more, PAIR[1] | more | {"weight": 1}]
    assert check(Sheet({"messages": [turns]}), "rows", Data(), None).contents == [PAIR]


def test_columns_of_which_nothing_is_learnt_are_told() -> None:
    """By name, where they hold anything."""
    row = FORMS["alpaca"] | {"tools": "x", "note": "y", "none": None, "domain": "z"}
    (note,) = check(Sheet({k: [v] for k, v in row.items()}), "rows", Data(), None).notes
    assert note.endswith(": tools, note")
    assert not check(Sheet({"messages": [PAIR]}), "rows", Data(), None).notes


def test_keys_of_turns_of_which_nothing_is_learnt_are_told() -> None:
    """By name, as a column of them is, also where a table has turns as text."""
    turns = [PAIR[0] | {"name": "Bo", "images": []}, PAIR[1] | {"weight": 1, "mask": True}]
    for value in (turns, json.dumps(turns)):
        (note,) = check(Sheet({"messages": [PAIR, value]}), "rows", Data(), None).notes
        assert note.endswith(": mask, name")


def test_an_object_around_the_rows_is_said() -> None:
    """As files have it that were not written for this."""
    whole = Sheet({"data": [[FORMS["alpaca"]] * 3]})
    with pytest.raises(UserError, match="the rows are the 3 objects in 'data'"):
        check(whole, "rows", Data(), None)


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
    one = check(Sheet.of(Dataset.from_list(rows)), "rows", config, None)
    labels = label_names({"rows": one}, config)
    assert labels == ["a", "b"] and together([one], labels)["label"][:] == [0, 1, 0, 1]
    plain = check(Sheet.of(Dataset.from_list(rows)), "rows", Data(), None)
    assert together([plain], label_names({"rows": plain}, Data()))["label"][:] == [0] * 4
    missing = Data(partition="dirichlet", label="kind")
    with pytest.raises(UserError, match=r"no column 'kind': set data\.label"):
        label_names(
            {"rows": check(Sheet.of(Dataset.from_list(rows)), "rows", missing, None)}, missing
        )


def test_the_bundled_definitions_are_conversations() -> None:
    """data.name = "definitions" with the task's kind: six owners, one question and answer a row."""
    federation = data.load(Data(name="definitions"), 0, "conversations")
    assert len(federation.clients) == 6 and len(federation.test) > 0
    assert [m["role"] for m in federation.test[0]["messages"]] == ["user", "assistant"]
