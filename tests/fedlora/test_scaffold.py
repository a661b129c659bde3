"""`fedlora new-strategy`: what it writes runs and passes, and a wrong name writes nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import strategies
from fedlora import files, scaffold, settings
from fedlora.cli import app
from fedlora.errors import UserError
from tests.federation import World, federate

ROOT = Path(__file__).parents[2]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


def call(*arguments: str) -> BaseException | None:
    """What the command raised, if anything."""
    found = CliRunner().invoke(app, ["new-strategy", *arguments])
    return None if found.exit_code == 0 else found.exception


def test_the_test_that_is_written_passes(here: Path) -> None:
    """As its author would start it, in that folder; and it fails where the method is wrong."""
    for name in ("DampedMean", "wrong"):
        assert call(name, "--directory", "mine") is None
    names = [f"{n}damped_mean.{e}" for n, e in (("", "py"), ("", "toml"), ("test_", "py"))]
    assert {p.name for p in (here / "mine").iterdir() if "wrong" not in p.name} == {*names}
    wrong = here / "mine/wrong.py"
    wrong.write_text(wrong.read_text("utf-8").replace("self.pace * (t", "0.5 * (t"), "utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=here / "mine",
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "2 failed, 2 passed" in done.stdout, done.stdout + done.stderr
    assert "FAILED test_wrong.py::test_full_pace_is_fedit" in done.stdout


def test_the_configuration_that_is_written_runs(here: Path, world: World) -> None:
    """With the method by its name and setting; here over a smaller model and fewer rows."""
    assert call("paced") is None
    tree = settings.read(Path("paced.toml"), [])
    config, strategy = settings.resolve(tree, strategies.load)
    assert (config.method, strategy.model_dump()) == ("paced:Paced", {"pace": 0.8})
    ran = federate(world, here / "runs", config.method, strategy__pace=0.8, run__rounds=1)
    assert ran.row(1)["clients"] == 3
    assert ran.strategy == strategy


@pytest.mark.parametrize(
    ("name", "module", "title"),
    [
        ("DampedMean", "damped_mean", "DampedMean"),
        ("damped_mean", "damped_mean", "DampedMean"),
        ("FedSVD", "fed_svd", "FedSVD"),
        ("FedSVDPlus2", "fed_svd_plus2", "FedSVDPlus2"),
        ("mine", "mine", "Mine"),
    ],
)
def test_names(name: str, module: str, title: str) -> None:
    """Either way of writing gives both, and capitals that are there are kept."""
    assert scaffold.names(name) == (module, title)


@pytest.mark.parametrize("name", ["", "1x", "class", "a b", "x-y", "a.b", "../x", "Ä", "_x"])
def test_what_is_no_name(here: Path, name: str) -> None:
    """Refused with an example, and nothing is written."""
    found = call("--", name)
    assert isinstance(found, UserError) and "as in DampedMean" in str(found)
    assert not list(here.iterdir())


@pytest.mark.parametrize(
    ("name", "said"), [("random", "would hide it"), ("FedEx", "comes with"), ("fed_it", "comes")]
)
def test_names_that_are_taken(here: Path, name: str, said: str) -> None:
    """By a module, which the method's would hide from every import, or by a method."""
    assert said in str(call(name))
    assert not list(here.iterdir())


def test_nothing_is_written_over(here: Path) -> None:
    """One file that is there keeps all three from being written."""
    (here / "test_mine.py").write_text("mine")
    assert "already there: test_mine.py" in str(call("Mine"))
    assert [p.read_text() for p in here.iterdir()] == ["mine"]


def test_nothing_half_written_is_left(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the disk is full at the last of the files, the first ones go too."""
    write = files.write

    def full(path: Path, text: str) -> None:
        if path.suffix == ".toml":
            raise OSError("No space left on device")
        write(path, text)

    monkeypatch.setattr(files, "write", full)
    assert "No space left" in str(call("Mine"))
    assert not list(here.iterdir())
