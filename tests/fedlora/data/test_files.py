"""Which files of a folder are tables, and why one of them cannot be read."""

import gzip
import os
from pathlib import Path

import datasets
import pytest

from fedlora.config import Data
from fedlora.data import files, load
from fedlora.errors import UserError
from tests.fedlora.data.tables import put, rows

TABLE = "text,label\np,x\nq,y\n"


def texts(path: Path) -> list[str]:
    return list(files.read(path).columns["text"])


def test_every_ending_is_read_in_any_case(tmp_path: Path) -> None:
    """And packed; the owner's name is what stands before it."""
    lines = '{"text": "p"}\n{"text": "q"}\n'
    content = {
        "Ann.CSV": TABLE,
        "bob.smith.tsv": TABLE.replace(",", "\t"),
        "carol.Json": '[{"text": "p"}, {"text": "q"}]',
        "dave.ndjson": lines,
        "TEST.JSONL": lines,
    }
    for name, said in content.items():
        (tmp_path / name).write_text(said)
    (tmp_path / "erin.csv.gz").write_bytes(gzip.compress(TABLE.encode()))
    (tmp_path / "frank.JSONL.GZ").write_bytes(gzip.compress(lines.encode()))
    found, others = files.of(tmp_path)
    assert sorted(found) == ["Ann", "bob.smith", "carol", "dave", "erin", "frank", "test"]
    assert others == []
    assert all(texts(path) == ["p", "q"] for path in found.values())


def test_what_is_passed_over_is_said(tmp_path: Path) -> None:
    """Neither a hidden file nor a backup is an owner, and no file of another kind goes without a
    word."""
    put(tmp_path / "a.csv", rows(0, 40))
    put(tmp_path / "b.jsonl", rows(40, 80))
    for name in (".a.csv.swp", ".hidden.csv", "._a.csv", "a.csv~", "c.xlsx", "old/d.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(TABLE)
    federation = load(Data(name=str(tmp_path), partition="split"), 0)
    assert federation.clients == ["a", "b"]
    assert federation.notes == [f"not read in {tmp_path}: a.csv~, c.xlsx, old"]
    (tmp_path / "b.jsonl").rename(tmp_path / "Train.JSONL")
    federation = load(Data(name=str(tmp_path), partition="iid"), 0)
    assert federation.notes == [f"not read in {tmp_path}: a.csv, a.csv~, c.xlsx, old"]


def test_two_files_of_one_owner_are_said(tmp_path: Path) -> None:
    """Packed or not, and whatever the case of the ending."""
    for other in ("a.CSV", "a.csv.gz", "a.tsv"):
        (tmp_path / "a.csv").write_text(TABLE)
        (tmp_path / other).write_text(TABLE)
        with pytest.raises(UserError, match="the same name but for the ending"):
            files.of(tmp_path)
        (tmp_path / other).unlink()


def test_a_replaced_file_is_read_anew(tmp_path: Path) -> None:
    """Even one of the same size and time, by this process or another."""
    path = tmp_path / "a.csv"
    path.write_text(TABLE)
    before = path.stat()
    assert texts(path) == ["p", "q"]
    path.write_text(TABLE.replace("q", "r"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert texts(path) == ["p", "r"]


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    """Where it is named, and where it lies in a folder of clients' files."""
    os.mkfifo(tmp_path / "a.csv")
    for data in (Data(name=str(tmp_path / "a.csv")), Data(name=str(tmp_path), partition="split")):
        with pytest.raises(UserError, match=r"a\.csv is no ordinary file"):
            load(data, 0)


def test_nothing_of_a_file_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So no cache has to be writable, nor room on any disk; under the rules that draw neither."""
    cache = tmp_path / "cache"
    cache.write_text("")  # a file, in which no folder can be made
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    path = put(tmp_path / "a.jsonl", rows())
    for partition in ("iid", "dirichlet", "shards"):
        federation = load(Data(name=str(path), partition=partition), 0)
        assert len(federation.rows) == 120
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jsonl", "cache"]


def test_a_file_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    """With its path and the reason: no permission, a link to nothing, a cut archive, a folder."""
    link = tmp_path / "a.csv"
    link.symlink_to(tmp_path / "gone.csv")
    with pytest.raises(UserError, match=r"a\.csv cannot be read \(No such file"):
        load(Data(name=str(tmp_path), partition="split"), 0)
    cut = tmp_path / "b.csv.gz"
    cut.write_bytes(gzip.compress(TABLE.encode())[:-9])
    with pytest.raises(UserError, match=r"b\.csv\.gz cannot be read: .*end"):
        files.read(cut)
    cut.write_text(TABLE)
    with pytest.raises(UserError, match=r"b\.csv\.gz cannot be read \(Not a gzipped file"):
        files.read(cut)
    (tmp_path / "c.parquet").write_text(TABLE)
    with pytest.raises(UserError, match=r"c\.parquet cannot be read: .*"):
        files.read(tmp_path / "c.parquet")


def test_no_permission_is_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that there is no such data set."""
    path = put(tmp_path / "a.csv", rows(0, 3))

    def denied(self: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(UserError, match=r"a\.csv cannot be read \(Permission denied\)"):
        files.read(path)


@pytest.mark.parametrize("kind", [PermissionError, OSError])
def test_a_cache_of_the_hub_that_cannot_be_written_is_said(
    kind: type[OSError], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not the name that is wrong."""
    number, why = (13, "Permission denied") if kind is PermissionError else (28, "No space left")

    def full(name: str) -> None:
        try:
            raise kind(number, why, "/cache/rows.arrow")
        except OSError as error:
            raise datasets.exceptions.DatasetGenerationError("An error occurred") from error

    monkeypatch.setattr(datasets, "load_dataset", full)
    with pytest.raises(UserError, match=rf"/cache/rows\.arrow \({why}\).*HF_HOME"):
        load(Data(name="owner/mood", partition="iid"), 0)
