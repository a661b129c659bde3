"""Methods are found by name, wherever they come from, and mistakes are named."""

from pathlib import Path

import pytest

import strategies
from fedlora import Strategy
from fedlora.config import Config
from fedlora.errors import MethodError, UserError


@pytest.mark.parametrize("name", strategies.BUILTIN)
def test_built_in_methods(name: str) -> None:
    """Each loads, stands with its defaults, names its paper, and its configuration keys exist."""
    method = strategies.load(name)
    assert issubclass(method, Strategy) and method() and method.paper
    sections = Config().model_dump()
    for key in method.defaults:
        section, _, field = key.partition(".")
        assert field in sections[section]
    assert name in strategies.names()


def test_a_method_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`my_module:MyMethod` is found in the current directory."""
    (tmp_path / "method_of_a_user.py").write_text(
        "from fedlora import Strategy\nclass Mine(Strategy):\n    pace: float = 0.5\nnumber = 3\n"
    )
    (tmp_path / "method_that_breaks.py").write_text("1 / 0\n")
    (tmp_path / "method_that_lacks.py").write_text("import no_such_library\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["", *__import__("sys").path])
    assert strategies.load("method_of_a_user:Mine")(pace=0.1).pace == 0.1
    with pytest.raises(UserError, match="Absent"):
        strategies.load("method_of_a_user:Absent")
    with pytest.raises(MethodError, match=r"extends fedlora\.Strategy"):
        strategies.load("method_of_a_user:number")
    with pytest.raises(MethodError, match="ZeroDivisionError"):
        strategies.load("method_that_breaks:Mine")
    with pytest.raises(MethodError, match="no_such_library"):
        strategies.load("method_that_lacks:Mine")
    with pytest.raises(UserError, match="no module 'nowhere'"):
        strategies.load("nowhere:Mine")


def test_an_unknown_method_is_answered_with_the_known_ones() -> None:
    """With the nearest and the list."""
    with pytest.raises(UserError, match=r"'fedexx'; did you mean 'fedex'\?.*fedit.*fslora"):
        strategies.load("fedexx")


def test_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package may bring methods in the group `fedlora.strategies`; built-in names are ours."""
    from importlib.metadata import EntryPoint

    def found(group: str) -> list[EntryPoint]:
        assert group == "fedlora.strategies"
        return [
            EntryPoint("theirs", "strategies.ffa:FFA", group),
            EntryPoint("fedit", "strategies.ffa:FFA", group),
        ]

    monkeypatch.setattr(strategies, "entry_points", found)
    assert strategies.load("theirs").__name__ == "FFA"
    assert strategies.load("fedit").__name__ == "FedIT"
    assert "theirs" in strategies.names()


def test_settings_of_all_methods() -> None:
    """Flower's table and a comparison hold every method's settings at once."""
    assert strategies.settings() == {"truncate", "max_rank", "assignment", "init", "ranks"}
