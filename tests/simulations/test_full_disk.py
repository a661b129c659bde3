"""A disk that is full, or another's: the true cause and path, nothing half-written, and a run goes
on once that is mended."""

import errno
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w

import server.result
from clients import store
from fedlora import cli, export, tensorfiles
from fedlora.runs import RunDir
from tests.federation import World

Called = Callable[..., tuple[Any, str]]  # exit code, error


@pytest.fixture
def fedlora(
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Called:
    """Runs the command where small.toml is a run called `run` of two rounds."""
    monkeypatch.chdir(tmp_path)
    given = {"strategy.name": "fedsa", "run.rounds": 2, "train.steps": 1}
    (tmp_path / "small.toml").write_text(tomli_w.dumps(world.tree(tmp_path / "runs", given)))

    def call(*arguments: str) -> tuple[Any, str]:
        monkeypatch.setattr(sys, "argv", ["fedlora", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code, capsys.readouterr().err

    return call


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def rust(*_: Any, **__: Any) -> None:
    raise RuntimeError("I/O error: No space left on device (os error 28)")


def late(real: Callable[..., Any], path: str) -> Callable[..., Any]:
    """Full once a file of this path is written."""

    def piece(*given: Any, **named: Any) -> Any:
        return full() if any(path in str(x) for x in given) else real(*given, **named)

    return piece


PLACES: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "round-0001/state.safetensors": lambda patch: patch.setattr(
        tensorfiles.os, "open", late(tensorfiles.os.open, ".round-0001/.state")
    ),
    "adapter": lambda patch: patch.setattr(export, "save_file", rust),
    "curves.png": lambda patch: patch.setattr("matplotlib.figure.Figure.savefig", full),
    "clients": lambda patch: patch.setattr(store, "save", late(store.save, "own-0002")),
    "log.txt": lambda patch: patch.setattr(server.result, "tell", full),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_run_says_where_and_goes_on(
    world: World, tmp_path: Path, fedlora: Called, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Exit code 1, and no round that was trained without whom it hit."""
    with monkeypatch.context() as patch:
        PLACES[place](patch)
        code, err = fedlora("run", "small.toml")
    assert code == 1 and "Traceback" not in err and "no room left" in err, err
    assert "resume" in err and (place in err or place in ("log.txt", "clients"))
    run = RunDir.open("run", str(tmp_path / "runs"))
    left = {p.name for p in run.path.iterdir()}
    assert not [name for name in left if name.startswith((".round", ".adapter", ".curves"))]
    assert place in ("clients", "log.txt") or place not in left
    code, err = fedlora("run", "--resume", "run")
    assert not code, err
    assert (run.path / "adapter/adapter_config.json").is_file()
    rows = map(json.loads, run.metrics.read_text().splitlines())
    assert [row["clients"] for row in rows if row["kind"] == "round"] == [0, 3, 3]


def test_a_folder_that_cannot_be_written(
    tmp_path: Path, fedlora: Called, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No run is left behind."""

    def barred(self: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", barred)
        code, err = fedlora("run", "small.toml")
    assert code == 1 and "may not write or read" in err and str(tmp_path / "runs") in err
    assert not (tmp_path / "runs").exists()


def test_a_checkpoint_of_somebody_elses_is_not_passed_over(
    tmp_path: Path, fedlora: Called, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not damaged: to go on from an older one would undo rounds."""
    assert not fedlora("run", "small.toml")[0]
    real = Path.open

    def opened(self: Path, *given: Any, **named: Any) -> Any:
        if self.name == "state.safetensors":
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return real(self, *given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", opened)
        code, err = fedlora("run", "--resume", "run", "run.rounds=3")
    assert code == 1 and "round-0002/state.safetensors (Permission denied)" in err


def test_an_export_leaves_nothing(
    tmp_path: Path, fedlora: Called, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an adapter or a merged model, by whichever library."""
    assert not fedlora("run", "small.toml", "strategy.name=fedit")[0]
    for more, where in (
        ([], "fedlora.export.save_file"),
        (["--merge"], "transformers.PreTrainedModel.save_pretrained"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(where, rust)
            code, err = fedlora("export", "run", "out", *more)
        assert code == 1 and "no room left" in err, err
        assert not [p for p in tmp_path.iterdir() if "out" in p.name]
