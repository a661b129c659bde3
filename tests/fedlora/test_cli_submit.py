"""`fedlora submit` on the command line: mistakes are found here, before anything is asked."""

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedlora.cli import app, main
from fedlora.errors import Failed, UserError
from fedlora.runs import RunDir
from server import submit as submitting
from server.flower import Connection

runner = CliRunner()


def asked(*words: str) -> BaseException | None:
    return runner.invoke(app, ["submit", *words]).exception


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    (tmp_path / "config.toml").write_text('[superlink.near]\naddress = "127.0.0.1:1"\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--to", "near", "run.rounds=none"], "run.rounds"),
        (["--to", "near", "strategy.name=fedx"], "fedx"),
        (["--to", "far"], "there are near"),
        (["--to", "near", "--resume", "one"], "there is no run 'one'"),
        (["--to", "near", "--resume", "one", "run.seed=2"], "only run.rounds may be given"),
    ],
)
def test_a_mistake_is_said_before_anything_is_asked(
    home: Path, words: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong setting, method, connection or run: one message; the superlink hears nothing and no
    directory is left."""

    def never(*given: object) -> str:
        raise AssertionError("the superlink was asked")

    monkeypatch.setattr(Connection, "start", never)
    error = asked(*words)
    assert isinstance(error, UserError) and said in str(error)
    assert not (home / "runs").exists()


def test_data_of_the_server_need_not_be_here(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths of models and rows are the server's and the nodes': nothing here looks for them."""
    names = []

    def start(self: Connection, app: Path) -> str:
        names.append((app / "pyproject.toml").read_text("utf-8"))
        raise UserError("not today")

    monkeypatch.setattr(Connection, "start", start)
    error = asked("--to", "near", "data.name=/far/rows.jsonl", "model.name=/far/model")
    assert str(error) == "not today" and "/far/model" in names[0]


def test_a_failed_run_exits_with_1(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that failed is no mistake of the person's (2) and no success (0)."""

    def fails(*given: object) -> RunDir:
        raise Failed("the run failed: [why]")

    monkeypatch.setattr(submitting, "submit", fails)
    monkeypatch.setattr(sys, "argv", ["fedlora", "submit", "--to", "near"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1 and "error: the run failed: [why]" in capsys.readouterr().err
