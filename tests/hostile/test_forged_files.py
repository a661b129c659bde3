"""Files of a run from a hostile server: what it places in the submitter's run directory."""

import base64
import hashlib
from pathlib import Path
from typing import Any

import pytest

from server import delivery
from server.result import finish
from server.submit import Listener
from tests.federation import Watch, World, federate
from tests.hostile.test_forged_events import listening, said


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A submitter's run directory, beside something of theirs."""
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/kept.json").write_text("theirs")
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("config.toml", ".lock", "run.json"):
        (folder / name).write_text("the submitter's")
    return folder


def send(folder: Path, files: dict[str, bytes], *only: str, **wrong: Any) -> tuple[Listener, Watch]:
    """A server sends these, or of those on its list only some."""
    listed = {
        name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} | wrong
        for name, data in files.items()
    }
    watch = Watch()
    listener = listening(folder, watch)
    listener.hear(said(1, "files", files=listed, left=[]))
    for n, name in enumerate(only or files, 2):
        data = base64.b64encode(files.get(name, b"x")).decode()
        listener.hear(said(n, "file", path=name, part=0, data=data))
    listener.incoming.close()
    return listener, watch


def disk(root: Path) -> dict[str, str]:
    found = (p for p in root.rglob("*") if p.is_file() or p.is_symlink())
    return {p.relative_to(root).as_posix(): p.read_text("utf-8") for p in found}


@pytest.mark.parametrize(
    "path",
    [
        *("./config.toml", "config.toml", "CONFIG.TOML", "config.toml/", "a/../config.toml"),
        *("config.toml ", "config.toml.", "\ufeffconfig.toml", "con\u200bfig.toml", ".lock"),
        *("adapter//x", "/tmp/evil", "../theirs/kept", "a/b/", "a/./b", "", ".", "a\\b", "c:x"),
        *("a\nb", "a/\u202etxt", "é", "clients/x", "privacy.json", "a" * 300),
    ],
)
def test_a_file_has_one_name_below_the_run_directory(path: str, here: Path) -> None:
    """A list that names a file in any other way than the one, or names what is the submitter's own,
    is not used: nothing is written, it is said, and the run's files count as missing."""
    before = disk(here.parent)
    listener, watch = send(here, {"adapter/fine.json": b"x", path: b"evil"})
    assert disk(here.parent) == before and not listener.incoming.expected
    assert any("list of files that is not used" in note for note in watch.notes)


@pytest.mark.parametrize(
    "path",
    [
        *("sitecustomize.py", "conftest.py", "mine.py", "mine.so", "mine.pth", "adapter/mine.py"),
        *("adapter/__init__.py", "adapter/adapter_model.bin", "adapter/x.pt", "adapter/x.pkl"),
        *("pyproject.toml", "pytest.ini", "setup.cfg", "Makefile", "Dockerfile", "adapter/x"),
        *("torch/x.json", "torch/__init__.py", "comparison.json", "result.json", "report.html"),
        *("tensorboard/x.py", "tensorboard/events.out.tfevents", "round-0001/mine.py"),
        *("round-0001/memory.json", "round-1/state.safetensors", "round-0001/adapter/x.json"),
    ],
)
def test_only_a_runs_files_are_taken(path: str, here: Path) -> None:
    """What no run has is refused, with all that is listed beside it: what Python imports where it
    is started, what a tool reads there, a pickle in the place of the adapter, another folder's
    plan. A server that has such a file keeps it, and lists it as left there."""
    before = disk(here.parent)
    listener, watch = send(here, {"adapter/fine.json": b"x", path: b"evil"})
    assert disk(here.parent) == before and not listener.incoming.expected
    assert "list of files that is not used" in watch.notes[0]
    (here / path).parent.mkdir(parents=True, exist_ok=True)
    (here / path).write_text("x")
    (here / "run.json").write_text('{"experiment": "0"}')
    found = delivery.manifest(here)
    assert path not in found.files and (path in found.left or path.endswith("memory.json"))


def test_all_that_a_run_leaves_is_taken(world: World, tmp_path: Path) -> None:
    """What rounds, updates, the adapter with its tokenizer, pictures and event files are called."""
    given = {"run__rounds": 1, "run__keep": "updates", "run__track": ("tensorboard",)}
    ran = federate(world, tmp_path, "fedit", **given)
    finish(ran.resident, ran.run, ran.state(1))
    ran.run.answers.touch()
    found = delivery.manifest(ran.run.path)
    assert not found.left
    kinds = {"run.json", "metrics.jsonl", "answers.jsonl", "log.txt", "curves.png"}
    kinds |= {"adapter/adapter_model.safetensors", "adapter/tokenizer.json", "adapter/README.md"}
    kinds |= {"round-0001/checkpoint.json", "round-0001/update-films.safetensors"}
    assert kinds <= found.files.keys() and any(n.startswith("tensorboard/") for n in found.files)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"adapter/a.json": b"x", "adapter/A.json": b"y"}, "capitals"),
        ({"adapter/a.json": b"x", "adapter/a.json/b.json": b"y"}, "no name for a file of a run"),
    ],
)
def test_a_list_agrees_with_itself(files: dict[str, bytes], words: str, here: Path) -> None:
    """Names that are one on some file systems, or cannot both be, are not taken."""
    before = disk(here.parent)
    _, watch = send(here, files)
    assert disk(here.parent) == before and words in watch.notes[0]


def test_only_what_is_on_the_list_is_taken(here: Path) -> None:
    """A file beside it, one of another size or digest, a part that it has not, a list that is more
    than may come, and a second list: none is written, and nothing half is left."""
    before = disk(here.parent)
    for listener, watch in (
        send(here, {"log.txt": b"x"}, "curves.png"),
        send(here, {"log.txt": b"xy"}, size=1),
        send(here, {"log.txt": b"x"}, sha256="0" * 64),
        send(here, {"log.txt": b"x"}, size=delivery.LIMIT + 1),
        send(here, {"log.txt": b""}, size=delivery.PART + 1),
    ):
        assert disk(here.parent) == before and watch.notes
        assert listener.incoming.missing() or not listener.incoming.expected
    listener, watch = send(here, {"log.txt": b"x"})
    listener.hear(said(9, "files", files={}, left=[]))
    assert "second list" in watch.notes[0] and not listener.incoming.missing()
    assert disk(here) == {**disk(here), "log.txt": "x"}


def test_links_are_not_followed(here: Path) -> None:
    """A link in the run directory, for a folder, a file, the events or what is half there, leads
    nowhere: what it points to stays as it is."""
    theirs = here.parent / "theirs"
    for name in ("adapter", "tensorboard", ".incoming"):
        (here / name).symlink_to(theirs)
    (here / "log.txt").symlink_to(theirs / "kept.json")
    evil = {"adapter/kept.json": b"evil", "adapter/new.json": b"evil"}
    files = {**evil, "log.txt": b"the run's", "curves.png": b"x"}
    listener, watch = send(here, files)
    assert {p.name: p.read_text() for p in theirs.iterdir()} == {"kept.json": "theirs"}
    assert listener.incoming.missing() == sorted(evil) and len(watch.notes) == 2
    assert (here / "log.txt").read_text() == "the run's" and not (here / "log.txt").is_symlink()
    assert (here / "curves.png").read_text() == "x" and not (here / ".incoming").exists()
