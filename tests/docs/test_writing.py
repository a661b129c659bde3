"""The guide to writing a strategy: what stands in its boxes runs."""

import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

import strategies
from fedlora import settings
from fedlora.cli import app
from simulations import series
from tests.federation import World, federate

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs/writing-a-strategy.md").read_text("utf-8")


def boxes(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All Python of the page as the one file that the page says to save."""
    path = tmp_path_factory.mktemp("guide") / "mine.py"
    path.write_text("\n\n".join(boxes("python")), "utf-8")
    return path


@pytest.fixture
def here(module: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(module.parent)
    monkeypatch.setattr(sys, "path", [*sys.path])  # to which methods' folders are added
    yield
    sys.modules.pop("mine", None)


def test_every_snippet_runs_and_says_what_the_page_says(
    here: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """From top to bottom, in one module; the harness holds each method to its equation, and finds
    FedIT not to be exact."""
    for name in ("Mine", "Damped", "Alternating", "Bounded", "Momentum"):
        assert strategies.load(f"mine:{name}").__name__ == name
    assert "exact" in GUIDE and GUIDE.count("check_strategy(") >= 6
    exec(compile("\n\n".join(boxes("python")), "guide", "exec"), {"__name__": "guide"})
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("name", ["Alternating", "Momentum"])
def test_a_method_of_the_page_trains(name: str, world: World, tmp_path: Path, here: None) -> None:
    """In a federation, through checkpoints and wires, as built-in ones do."""
    ran = federate(world, tmp_path / "runs", f"mine:{name}", run__rounds=2)
    assert ran.row(2)["clients"] == 3


def test_methods_of_the_page_can_be_compared(world: World, tmp_path: Path, here: None) -> None:
    """A comparison knows what each trains before anything is run: of one whose `place` wants
    values too, as Bounded's does."""
    names = ",".join(f"mine:{name}" for name in ("Damped", "Alternating", "Bounded", "Momentum"))
    given = world.tree(tmp_path, {"run.rounds": 1})
    plan = series.planned(given, {}, names, None, False)
    found = series.contenders(plan, series.place(plan))
    trained = {one.method: one.trained_parameters for one in found}
    assert len(trained) == 4 and trained["mine:Bounded"] == trained["mine:Damped"] > 0


def test_commands_of_the_page_take_what_they_are_given(here: None) -> None:
    """Every setting in a command exists, of the method that it names."""
    given = [shlex.split(line) for box in boxes("sh") for line in box.splitlines()]
    runs = [words[2:] for words in given if words[:2] == ["fedlora", "run"]]
    assert len(runs) >= 3
    for words in runs:
        path = ROOT / words.pop(0) if words[0].endswith(".toml") else None
        settings.resolve(settings.read(path, words), strategies.load)


def test_the_scaffold_of_the_page_is_written(tmp_path: Path) -> None:
    """By the command as it stands there."""
    (line,) = [x for box in boxes("sh") for x in box.splitlines() if "new-strategy" in x]
    words = shlex.split(line.replace("methods", str(tmp_path / "methods")))
    assert CliRunner().invoke(app, words[1:]).exit_code == 0
    assert (tmp_path / "methods/damped_mean.py").is_file()


def test_the_entry_point_is_where_methods_are_looked_for() -> None:
    """The group's name is the one that fedlora asks for."""
    (box,) = boxes("toml")
    (group,) = tomllib.loads(box)["project"]["entry-points"]
    assert group in (ROOT / "strategies/__init__.py").read_text("utf-8")
