"""What is told of columns and owners, held against counts made by hand."""

import pytest
from datasets import Dataset

from fedlora.check import data as look
from fedlora.config import Data
from fedlora.data import Federation
from fedlora.data.columns import Sheet

NONE = Dataset.from_dict({"text": [], "label": []})


def federation(labels: list[str]) -> Federation:
    rows = Dataset.from_dict({"text": list("abcdef"), "label": [0, 1, 1, 0, 1, 1]})
    return Federation(
        labels=labels,
        clients=["ann", "bob"],
        test=rows.select([1, 2, 3]),
        public=NONE,
        rows=rows,
        trained={"ann": [0, 1, 2], "bob": [4]},
        held={"ann": [3], "bob": [5]},
    )


def test_columns_have_their_kind_and_their_use() -> None:
    """Of every kind that tables have."""
    table = Sheet(
        {
            "text": ["one", "two", "one"],
            "label": [1, 0, 1],
            "weight": [0.5, 1.5, 2.5],
            "kept": [True, True, False],
            "turns": [["a"], ["b"], []],
            "site": ["x", "y", "x"],
        }
    )
    found = look.columns(table, Data(by="site"), "labelled")
    assert [(c.name, c.kind, c.different, c.example, c.use) for c in found] == [
        ("text", "text", 2, "one", "text"),
        ("label", "whole numbers", 2, "1", "label"),
        ("weight", "numbers", 3, "0.5", ""),
        ("kept", "true or false", 2, "true", ""),
        ("turns", "list", None, "['a']", ""),
        ("site", "text", 2, "x", "client"),
    ]


@pytest.mark.parametrize(
    ("columns", "uses"),
    [
        (["instruction", "input", "output"], ["question", "context", "answer"]),
        (["instruction", "context", "response"], ["question", "context", "answer"]),
        (["prompt", "response"], ["question", "answer"]),
        (["messages", "source"], ["turns", ""]),
    ],
    ids=lambda names: "-".join(names) if isinstance(names, list) else None,
)
def test_conversations_say_what_their_columns_are(columns: list[str], uses: list[str]) -> None:
    """In each of the forms."""
    table = Sheet({name: [["a"] if name == "messages" else "a"] for name in columns})
    found = look.columns(table, Data(partition="iid"), "conversations")
    assert [c.use for c in found] == uses


def test_owners_are_told_with_their_labels() -> None:
    """Of the rows that each trains on; a label that somebody lacks is there, with none."""
    found = look.owners(federation(["bad", "good"]))
    assert found == [
        look.Owner("ann", 3, 1, {"bad": 1, "good": 2}),
        look.Owner("bob", 1, 1, {"bad": 0, "good": 1}),
    ]
    assert [o.labels for o in look.owners(federation([]))] == [{}, {}]


def test_the_commonest_label_is_what_a_score_is_held_against() -> None:
    """Two of the three test rows are good."""
    assert look.commonest(federation(["bad", "good"])) == ("good", 2 / 3)
    assert look.commonest(federation([])) == ("", 0.0)
