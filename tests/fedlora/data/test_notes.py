"""What is said of rows that look odd."""

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from fedlora.config import Data
from fedlora.data import load, notes
from fedlora.data.owned import own
from tests.fedlora.data.tables import put


@pytest.mark.parametrize(
    "names",
    [
        ("good", "Good"),
        ("good", " good\t"),
        ("very good", "very  good", "VERY\u00a0good"),
        ("good", "go\u200bod"),
        ("café", "cafe\u0301"),
        ("1", "01", "+1"),
        ("straße", "STRASSE"),
    ],
)
def test_spellings_of_one_label_are_told_with_their_counts(names: tuple[str, ...]) -> None:
    """The commonest first; names of their own are not told."""
    counts = {name: 10 - i for i, name in enumerate(names)} | {"bad": 3, "10": 4, "-1": 1, "0": 2}
    (note,) = notes.alike("labels", counts)
    told = " / ".join(f"{name!r} ({10 - i} rows)" for i, name in enumerate(names))
    assert note == f"labels that look alike and count as different: {told}"


def test_different_names_are_none() -> None:
    assert notes.alike("labels", {"good": 1, "bad": 1, "0": 1, "1": 1, "10": 1, "-1": 1}) == []


def test_only_so_many_are_spelt_out() -> None:
    counts = {name: 1 for i in range(30) for name in (f"n{i}", f"N{i}")}
    (note,) = notes.alike("labels", counts)
    assert note.count("rows") == 2 * notes.SHOWN and note.endswith("…")


def test_numbers_beside_words_are_told() -> None:
    """Two owners who write the same labels in two ways; not where all are of a kind."""
    (note,) = notes.mixed({"bad": 5, "1": 3, "good": 4})
    assert "numbers, as '1' (3 rows), and words, as 'bad' (5 rows), 'good' (4 rows)" in note
    assert notes.mixed({"0": 1, "-1": 1}) == [] == notes.mixed({"a1": 1, "1.5": 1})


def test_values_for_nothing_are_told() -> None:
    (note,) = notes.nothing("labels", {"good": 2, "nan": 1, "none": 4, "NA": 7})
    assert note.endswith(": 'NA' (7 rows), 'nan' (1 rows)")
    assert notes.nothing("labels", {"good": 1, "nano": 1}) == []
    (note,) = notes.nothing("labels", {"0": 2, "-1": 3})
    assert note.endswith(": '-1' (3 rows)")


def test_parts_of_a_data_set_are_told_among_clients(tmp_path: Path) -> None:
    """In a folder of clients' files; not where a column says whose rows are whose."""
    for name in ("validation", "train", "dev_set", "test-00000-of-00001", "ann", "trains", "test"):
        rows = [{"text": f"{name} {i}", "label": "ab"[i % 2], "domain": "dev"} for i in range(20)]
        put(tmp_path / f"{name}.jsonl", rows)
    (note,) = load(Data(name=str(tmp_path), partition="split", test=0, public=0), 0).notes
    assert note.startswith(
        "clients with a name for a part of a data set: 'dev_set' (20 rows), "
        "'test-00000-of-00001' (20 rows), 'train' (20 rows), 'validation' (20 rows)."
    )
    assert not any("part of" in note for note in load(Data(name=str(tmp_path)), 0).notes)


def test_a_client_twice_is_told() -> None:
    """Where half of its rows or more are others', and nobody else."""
    owned = {"bob": said(["a", "b"], [0, 1]), "copy": said(["b", "a", "c"], [1, 0, 0])}
    owned |= {"cy": said(["a", "d", "e"], [0, 0, 0]), "none": said([], [])}
    (note,) = notes.shared(owned)
    assert note.endswith(": 'bob' (2 of 2), 'copy' (2 of 3)")
    assert notes.shared({"cy": owned["cy"], "dan": said(["f", "f"], [0, 0])}) == []


def said(texts: list[str], labels: list[int]) -> Dataset:
    return Dataset.from_dict({"text": texts, "label": labels})


def test_repeated_rows_are_told() -> None:
    """Texts that have two labels, and test rows that are training rows."""
    trained = said(["a", "b", "a", "a", "c", "c"], [0, 1, 1, 0, 2, 2])
    assert notes.repeated(trained, said(["d"], [0])) == [
        "1 texts have more than one label, in 3 training rows"
    ]
    (_, known) = notes.repeated(trained, said(["b", "d", "a", "a"], [0, 0, 0, 0]))
    assert known.startswith("3 of 4 test rows are training rows too")
    assert notes.repeated(said(["a"], [0]), said(["b"], [0])) == []


def test_labels_of_test_rows_alone_are_told(tmp_path: Path) -> None:
    """As where two files name the same things in two ways; not where all are learnt, nor to a
    coordinator, who knows no training rows."""
    put(tmp_path / "train.csv", table(["pos", "neg"] * 20))
    put(tmp_path / "test.csv", [{"text": f"t {i}", "label": "positive"} for i in range(3)])
    told = load(Data(name=str(tmp_path), partition="iid"), 0).notes
    assert told == ["labels of test rows that no training row has: 'positive' (3 rows)"]
    put(tmp_path / "test.csv", [{"text": f"t {i}", "label": "pos"} for i in range(3)])
    assert load(Data(name=str(tmp_path), partition="iid"), 0).notes == []
    put(tmp_path / "alone" / "test.csv", [{"text": k, "label": k} for k in "ab"])
    assert load(Data(name=str(tmp_path / "alone"), partition="split"), 0).notes == []


def table(labels: list[str]) -> list[dict[str, Any]]:
    return [
        {"text": f"text {i}", "label": l, "site": "North" if i % 2 else "north"}
        for i, l in enumerate(labels)
    ]


def test_a_federation_has_its_notes(tmp_path: Path) -> None:
    """On labels and owners of all files, each once; a node's own rows too; none on good rows."""
    put(tmp_path / "all.csv", table(["good", "bad", "Good", "bad"] * 10))
    for data in (Data(name=str(tmp_path / "all.csv"), by="site"),):
        told = load(data, 0).notes
        assert [note.split()[0] for note in told] == ["labels", "clients"]
        assert "'Good' (10 rows) / 'good' (10 rows)" in told[0]
        assert "'North' (20 rows) / 'north' (20 rows)" in told[1]
    alone = own(str(tmp_path / "all.csv"), "north", Data(), 0)
    assert [note.split()[0] for note in alone.notes] == ["labels"]
    assert load(Data(), 0).notes == [] == load(Data(name="definitions"), 0, "conversations").notes
