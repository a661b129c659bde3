"""Dividing a data set into the files that owners would have."""

import json
from pathlib import Path

import pytest

from fedlora import data
from fedlora.config import Data
from fedlora.data import Federation
from fedlora.errors import UserError
from simulations import divide
from tests.federation import World


def told(federation: Federation, rows: list[int]) -> list[tuple[str, str]]:
    """The rows by text and label name."""
    chosen = federation.rows.select(rows)
    return [(r["text"], federation.labels[r["label"]]) for r in chosen]


def read(path: Path) -> list[tuple[str, str]]:
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert all(set(row) == {"text", "label"} for row in rows)
    return [(row["text"], row["label"]) for row in rows]


@pytest.mark.parametrize("partition", ["natural", "dirichlet"])
def test_a_clients_file_has_all_its_rows_and_no_others(
    world: World, tmp_path: Path, partition: str
) -> None:
    """Training and held-out rows together, in the data's order; the server's test rows apart; the
    public rows nowhere."""
    config = Data(name=str(world.data), partition=partition, public=16, clients=3)
    clients = divide.divide(tmp_path, config, seed=1)
    federation = data.load(config, seed=1)
    assert clients == federation.clients
    assert sorted(p.stem for p in tmp_path.iterdir()) == sorted([*clients, "test"])
    for client in clients:
        rows = sorted(federation.trained[client] + federation.held[client])
        assert read(tmp_path / f"{client}.jsonl") == told(federation, rows)
    test = [(r["text"], federation.labels[r["label"]]) for r in federation.test]
    assert read(tmp_path / "test.jsonl") == test


def test_the_files_make_the_same_federation(world: World, tmp_path: Path) -> None:
    """Each client trains on and holds out the very rows, in order, that it has undivided: with
    data.rows too, which is drawn by whoever reads the file."""
    given = Data(name=str(world.data), public=16, holdout=0.2, rows=30)
    divide.divide(tmp_path, given, seed=3)
    apart = Data(name=str(tmp_path), partition="split", public=0, holdout=0.2, rows=30)
    one, other = data.load(given, seed=3), data.load(apart, seed=3)
    assert one.clients == other.clients
    for client in one.clients:
        assert told(one, one.trained[client]) == told(other, other.trained[client])
        assert told(one, one.held[client]) == told(other, other.held[client])


def test_nothing_is_overwritten(world: World, tmp_path: Path) -> None:
    """A second time into the same folder is refused, naming the file."""
    config = Data(name=str(world.data), public=16)
    divide.divide(tmp_path, config, seed=1)
    with pytest.raises(UserError, match=r"books\.jsonl exists"):
        divide.divide(tmp_path, config, seed=1)


def test_a_client_whose_name_leads_elsewhere_is_refused(world: World, tmp_path: Path) -> None:
    """A client's id is a file name, and never a path."""
    rows = [json.loads(line) for line in world.data.read_text("utf-8").splitlines()]
    moved = [{**row, "domain": "../out"} if row["domain"] == "shops" else row for row in rows]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in moved))
    with pytest.raises(UserError, match="cannot be the name of a file"):
        divide.divide(tmp_path / "to", Data(name=str(tmp_path / "rows.jsonl")), seed=1)
    assert not (tmp_path / "to").exists() and not (tmp_path / "out.jsonl").exists()


def test_the_command_says_what_it_wrote_or_what_is_wrong(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 0 and the clients, or 2 and the mistake."""
    given = [str(tmp_path / "to"), f"data.name={world.data}", "data.public=16"]
    assert divide.main(given) == 0
    assert "3 clients" in capsys.readouterr().out
    assert divide.main(given) == 2
    assert "exists" in capsys.readouterr().err
