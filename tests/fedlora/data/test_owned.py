"""One owner's rows, and a coordinator's data."""

import json
from pathlib import Path

import pytest

from fedlora.config import Data
from fedlora.data import Federation, load
from fedlora.data.owned import own
from fedlora.errors import UserError
from tests.fedlora.data.tables import LABELS, put, rows


def told(federation: Federation, client: str) -> list[list[tuple[str, str]]]:
    """(text, label name) of what a client trains on, and of what it holds out, in order."""
    parts = (federation.train(client), federation.heldout(client))
    return [[(r["text"], federation.labels[r["label"]]) for r in part] for part in parts]


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("most", [None, 13])
def test_a_node_has_the_rows_of_a_simulation_of_the_same_files(
    tmp_path: Path, ending: str, most: int | None
) -> None:
    """What it trains on and holds out, in the same order, as under "split" with a test file."""
    put(tmp_path / "test.jsonl", rows(200, 220))
    files = {c: put(tmp_path / f"{c}{ending}", rows(*span)) for c, span in SPANS.items()}
    data = Data(name=str(tmp_path), partition="split", public=0, holdout=0.2, rows=most)
    whole = load(data, seed=3)
    for client, file in files.items():
        alone = own(str(file), client, data, seed=3)
        assert alone.clients == [client]
        assert told(alone, client) == told(whole, client)
        assert alone.labels == whole.labels == LABELS
        assert len(alone.test) == len(alone.public) == 0


SPANS = {"a": (0, 50), "b": (50, 77), "c": (77, 120)}


def test_a_node_has_the_rows_of_a_column_s_simulation(tmp_path: Path) -> None:
    """And as under "natural", where an owner's file has its rows in the table's order."""
    put(tmp_path / "all/train.jsonl", rows())
    put(tmp_path / "all/test.jsonl", rows(200, 220))
    data = Data(name=str(tmp_path / "all"), partition="natural", by="place", public=0)
    whole = load(data, seed=5)
    for client in whole.clients:
        file = put(tmp_path / f"{client}.csv", [r for r in rows() if r["place"] == client])
        assert told(own(str(file), client, data, seed=5), client) == told(whole, client)


def test_the_bundled_rows_of_one_client() -> None:
    """ "sentiment" is the client's part of the bundled data as everybody divides it, whatever data
    the run names; the public rows stay the server's."""
    whole = load(Data(), seed=0)
    for given in (Data(), Data(name="elsewhere", partition="iid", text="body")):
        alone = own("sentiment", "films", given, seed=0)
        assert alone.clients == ["films"]
        assert told(alone, "films") == told(whole, "films")
    with pytest.raises(UserError, match="no client 'film': be one of editorials, films"):
        own("sentiment", "film", Data(), seed=0)


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    """And so is a folder, which no node's rows are."""
    for path in (tmp_path / "gone.csv", tmp_path):
        with pytest.raises(UserError, match=f"no file {path}"):
            own(str(path), "a", Data(), seed=0)


def test_a_client_that_lacks_labels_keeps_the_full_list(tmp_path: Path) -> None:
    """data.labels stands for the labels of all, in its order; without it one label alone teaches
    nothing."""
    file = put(tmp_path / "a.jsonl", [r for r in rows() if r["label"] == "good"])
    with pytest.raises(UserError, match=r"every row has the label 'good'.*name them all in data"):
        own(str(file), "a", Data(), seed=0)
    alone = own(str(file), "a", Data(labels=["so-so", "good", "bad"]), seed=0)
    assert alone.labels == ["so-so", "good", "bad"]
    assert set(alone.rows["label"]) == {1}


@pytest.mark.parametrize("partition", ["iid", "split"])
def test_the_label_list_holds_in_a_simulation_too(tmp_path: Path, partition: str) -> None:
    """Rows get their place in data.labels; one that is not in it is named by file and row."""
    file = put(tmp_path / "a.jsonl", rows())
    put(tmp_path / "test.jsonl", rows(200, 220))
    name = str(file if partition == "iid" else tmp_path)
    labels = ["so-so", "other", "good", "bad"]
    data = Data(name=name, partition=partition, clients=2, labels=labels)
    federation = load(data, seed=0)
    assert federation.labels == labels
    found = {r["text"]: labels[r["label"]] for r in federation.rows}
    assert found.items() <= {r["text"]: r["label"] for r in rows()}.items()
    with pytest.raises(UserError, match=r"row 3 has the label 'so-so', .* \(bad, good\)"):
        load(data.model_copy(update={"labels": ["bad", "good"]}), seed=0)


def test_integer_labels_are_named_in_decimal(tmp_path: Path) -> None:
    """[1, 2] in the configuration are the labels 1 and 2 of a column of integers."""
    file = put(tmp_path / "a.jsonl", [{"text": "p", "label": 2}, {"text": "q", "label": 2}])
    alone = own(str(file), "a", Data(labels=[1, 2]), seed=0)
    assert (alone.labels, alone.rows["label"][:]) == (["1", "2"], [1, 1])


@pytest.mark.parametrize("wrong", [["a"], ["a", "b", "a"]])
def test_a_label_list_has_two_and_none_twice(wrong: list[str]) -> None:
    """One label is nothing to learn; a repeated one would be two indices."""
    with pytest.raises(ValueError, match="labels"):
        Data(labels=wrong)


def test_a_coordinator_needs_nobodys_rows(tmp_path: Path) -> None:
    """A folder with the server's test rows, and public ones if it likes, makes a federation of no
    clients whose labels are theirs."""
    put(tmp_path / "test.csv", rows(0, 20))
    data = Data(name=str(tmp_path), partition="split")
    alone = load(data, seed=0)
    assert (alone.clients, alone.labels) == ([], LABELS)
    assert (len(alone.test), len(alone.public), len(alone.rows)) == (20, 0, 0)
    put(tmp_path / "public.csv", rows(20, 50))
    both = load(data, seed=0)
    assert (both.clients, len(both.test), len(both.public)) == ([], 20, 30)


def test_public_rows_of_a_file_are_taken_from_no_client(tmp_path: Path) -> None:
    """Where a split folder has public.*, no client gives rows for it."""
    for client, span in SPANS.items():
        put(tmp_path / f"{client}.csv", rows(*span))
    put(tmp_path / "test.csv", rows(200, 220))
    put(tmp_path / "public.jsonl", rows(300, 304))
    federation = load(Data(name=str(tmp_path), partition="split"), seed=0)
    assert federation.clients == list(SPANS)
    assert federation.public["text"][:] == [r["text"] for r in rows(300, 304)]
    assert sum(len(r) for r in told_rows(federation)) == 120


def told_rows(federation: Federation) -> list[list[int]]:
    return [*federation.trained.values(), *federation.held.values()]


def test_rows_are_taken_in_file_order(tmp_path: Path) -> None:
    """The pool is the file, row by row."""
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows(0, 30)))
    alone = own(str(file), "a", Data(), seed=0)
    assert alone.rows["text"][:] == [r["text"] for r in rows(0, 30)]
