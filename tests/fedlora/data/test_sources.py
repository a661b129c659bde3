"""What can be read, and what is said where it cannot."""

import json

import datasets
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from fedlora.config import Data
from fedlora.data import load
from fedlora.data.sources import read
from fedlora.errors import UserError
from tests.fedlora.data.tables import LABELS, put, rows


def table(path, **settings):
    return Data(name=str(path), partition="iid", **settings)


@pytest.mark.parametrize("ending", ["csv", "jsonl", "json", "parquet"])
def test_every_format_gives_the_same_rows(ending, tmp_path):
    """The format of a file does not matter, nor what its columns are called."""
    named = [{"review": row["text"], "mood": row["label"]} for row in rows()]
    data = table(put(tmp_path / f"all.{ending}", named), text="review", label="mood")
    source = read(data)
    assert source.rows["text"][:] == [row["text"] for row in rows()]
    assert [LABELS[i] for i in source.rows["label"]] == [row["label"] for row in rows()]
    assert source.rows.column_names == ["text", "label"]


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_words_that_look_like_missing_values(ending, tmp_path):
    """A text "None" or a label "NA" is a text and a label."""
    awkward = [{"text": "None", "label": "NA"}, {"text": "null", "label": "nan"}]
    source = read(table(put(tmp_path / f"all.{ending}", awkward)))
    assert source.labels == ["NA", "nan"]
    assert source.rows["text"][:] == ["None", "null"]


@pytest.mark.parametrize("as_text", [False, True], ids=["integers", "digits"])
def test_integer_labels_sort_as_numbers(as_text, tmp_path):
    """Labels 9 and 10 keep their order, written as integers or as text."""
    values = [9, 10, 100, 2, 9]
    cells = [{"text": "a", "label": str(v) if as_text else v} for v in values]
    source = read(table(put(tmp_path / "all.jsonl", cells)))
    assert source.labels == ["2", "9", "10", "100"]
    assert source.rows["label"][:] == [1, 2, 3, 0, 1]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_numbers_and_booleans_in_rows_are_text(ending, tmp_path):
    """A text of digits among others, and labels of either kind."""
    cells = [
        {"text": t, "label": b, "n": i} for i, (t, b) in enumerate([("a", True), ("b", False)])
    ]
    data = table(put(tmp_path / f"all.{ending}", cells))
    assert [label.lower() for label in read(data).labels] == ["false", "true"]
    assert read(data.model_copy(update={"label": "n"})).labels == ["0", "1"]
    (tmp_path / "mixed.jsonl").write_text(
        '{"text": "a", "label": 1}\n{"text": 7.0, "label": "x"}\n'
    )
    source = read(table(tmp_path / "mixed.jsonl"))
    assert (source.rows["text"][:], source.labels) == (["a", "7.0"], ["1", "x"])


def test_labels_stay_as_they_are_written(tmp_path):
    """01 is not 1, in an order that is the same for all processes."""
    (tmp_path / "all.csv").write_text("text,label\na,1\nb,01\nc,007\nd,+1\n")
    source = read(table(tmp_path / "all.csv"))
    assert source.labels == ["+1", "01", "1", "007"]
    assert source.rows["label"][:] == [2, 1, 3, 0]


def test_class_labels_keep_their_names_and_order(tmp_path):
    """A data set with label names of its own keeps them, one that no row has included."""
    features = Features(text=Value("string"), label=ClassLabel(names=["z", "unused", "a"]))
    data = Dataset.from_dict({"text": ["p", "q"], "label": [2, 0]}, features)
    source = read(table(put(tmp_path / "all.parquet", data)))
    assert source.labels == ["z", "unused", "a"]
    assert source.rows["label"][:] == [2, 0]


def test_labels_are_those_of_all_files(tmp_path):
    """Under "split" a client that lacks some labels has the indices of everyone's."""
    put(tmp_path / "one.csv", [{"text": "p", "label": 3}, {"text": "q", "label": 1}])
    put(tmp_path / "two.csv", [{"text": "r", "label": 2}])
    source = read(Data(name=str(tmp_path), partition="split"))
    assert source.labels == ["1", "2", "3"]
    assert source.rows["label"][:] == [2, 0, 1]
    assert source.owners == ["one", "one", "two"]


def test_the_hub(monkeypatch):
    """A name that is no path is the hub's: its train and test splits are taken."""
    splits = DatasetDict(
        train=Dataset.from_list(rows(0, 60)),
        test=Dataset.from_list(rows(60, 70)),
    )
    monkeypatch.setattr(datasets, "load_dataset", lambda name: {"owner/mood": splits}[name])
    federation = load(Data(name="owner/mood", partition="iid"), 0)
    assert len(federation.test) == 10
    assert sum(len(rows) for rows in federation.trained.values()) > 40


def test_the_hub_out_of_reach():
    """Offline, an unknown name gives one short message with the mend."""
    with pytest.raises(UserError, match="no file or folder here, and the hub") as caught:
        load(Data(name="nobody/nothing"), 0)
    assert "data.name" in str(caught.value)
    assert len(str(caught.value)) < 600


GOOD = [{"text": "p", "label": "x"}, {"text": "q", "label": "y"}]
TABLES = {
    "a column that is not there": (
        [{"body": "p", "texts": "q", "label": "x"}],
        "no column 'text'; its columns are texts, .*Set data.text",
    ),
    "a row without a label": ([*GOOD, {"text": "r", "label": None}], "row 3 .*'label'"),
    "a blank text": ([*GOOD, {"text": "  ", "label": "x"}], "row 3 .*'text'"),
    "a number for a text": (
        [{"text": 1, "label": "x", "title": "p"}],
        "'text' holds numbers, not text.*title",
    ),
    "a fraction for a label": ([{"text": "p", "label": 0.5}], "strings or integers"),
    "a list for a text": (
        [*GOOD[:1], {"text": "q", "label": ["x"]}],
        "row 2 .*'label' holds a list",
    ),
    "rows within an object": ([{"data": GOOD}], "no column 'text'.* the 2 objects in 'data'"),
    "one label only": (GOOD[:1] * 3, "every row has the label 'x'"),
}


@pytest.mark.parametrize("case", TABLES)
def test_bad_tables_are_said(case, tmp_path):
    """A fault in a table is reported with the column or row, and what to do."""
    content, says = TABLES[case]
    with pytest.raises(UserError, match=says):
        path = tmp_path / "all.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in content))
        read(table(path))


def test_fractions_are_no_labels_in_any_form(tmp_path):
    """Nor whole ones, as integers become where a table lacks one."""
    for ending in ("csv", "parquet"):
        path = put(tmp_path / f"all.{ending}", [{"text": "p", "label": 1.0}])
        with pytest.raises(UserError, match=r"holds fractions, as 1\.0"):
            read(table(path))


def test_a_missing_owner_is_said(tmp_path):
    """Under "natural" each row has an owner."""
    path = put(tmp_path / "all.jsonl", [*rows(0, 5), {"text": "p", "label": "x", "place": None}])
    with pytest.raises(UserError, match=r"row 6 .*'place' \(data.by\)"):
        read(Data(name=str(path), by="place"))


def test_unknown_class_label_is_said(tmp_path):
    """The hub's mark for "no label", -1, is not taken for the last label."""
    features = Features(text=Value("string"), label=ClassLabel(names=["a", "b"]))
    data = Dataset.from_dict({"text": ["p", "q"], "label": [1, -1]}, features)
    with pytest.raises(UserError, match="row 2 has the label -1"):
        read(table(put(tmp_path / "all.parquet", data)))


FILES = {
    "missing file": ({}, "gone.csv", "iid", "no file or folder"),
    "missing folder": ({}, "gone", "iid", "no file or folder"),
    "unknown type": ({"all.xlsx": "?"}, "all.xlsx", "iid", "unknown file type '.xlsx'"),
    "no training rows": ({"rest.csv": "text,label\np,x\n"}, "", "iid", "train.*It has rest.csv"),
    "same name twice": ({"a.csv": "?", "a.jsonl": "?"}, "", "split", "the same name"),
    "no client": ({}, "", "split", "no client's file.*It has no file"),
    "no client's, but others": ({"a.xls": "?"}, "", "split", "no client's file.*It has a.xls"),
    "not a folder": ({"all.csv": "?"}, "all.csv", "split", "a folder with one file a client"),
    "empty client": (
        {"a.csv": "text,label\np,x\n", "b.csv": ""},
        "",
        "split",
        "b.csv .* has no rows",
    ),
    "empty": ({"all.jsonl": ""}, "all.jsonl", "iid", "all.jsonl .* has no rows"),
    "only a header": ({"a.csv": "text,label\n"}, "", "split", "a.csv .* has no rows"),
    "a field too many": (
        {"all.csv": "text,label\np,x\nq, r,y\n"},
        "all.csv",
        "iid",
        "all.csv cannot be read: line 3 has 3 fields",
    ),
    "damaged": ({"all.jsonl": "{broken\n"}, "all.jsonl", "iid", "all.jsonl cannot be read"),
}


@pytest.mark.parametrize("case", FILES)
def test_bad_files_are_said(case, tmp_path):
    """A fault with a file is reported with its name and what to do."""
    files, name, partition, says = FILES[case]
    for file, content in files.items():
        (tmp_path / file).write_text(content)
    with pytest.raises(UserError, match=says):
        load(Data(name=str(tmp_path / name), partition=partition), 0)
