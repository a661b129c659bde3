"""The README's own method runs as it stands there, and every experiment is one."""

import re
from pathlib import Path

import pytest

import strategies
from fedlora import settings
from tests.federation import World, federate

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")


def test_the_method_in_the_readme_runs(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The class is at most ten lines, loads by the name that is shown, takes its setting, and
    trains."""
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    body = [line for line in code.splitlines() if line.strip()]
    assert len(body) <= 10
    (tmp_path / "damped.py").write_text(code, "utf-8")
    monkeypatch.chdir(tmp_path)
    assert "strategy.name=damped:Damped strategy.keep=0.3" in README
    ran = federate(world, tmp_path / "runs", "damped:Damped", strategy__keep=0.3, run__rounds=1)
    assert ran.row(1)["clients"] == 3
    assert ran.strategy.model_dump() == {"keep": 0.3}


@pytest.mark.parametrize("path", sorted(ROOT.glob("simulations/experiments/*.toml")), ids=str)
def test_every_experiment_is_a_valid_configuration(path: Path) -> None:
    """The experiments that come with the project say nothing that does not exist."""
    settings.resolve(settings.read(path, []), strategies.load)
