"""The project file: what Flower reads of it is what fedlora.config says."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

import fedlora
import strategies
from fedlora import settings, tasks
from fedlora.config import Config

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
APP = PROJECT["tool"]["flwr"]["app"]


def run_value(value: Any) -> Any:
    """A default as Flower's run configuration can hold it: lists and nulls as JSON strings."""
    return json.dumps(value) if value is None or isinstance(value, list) else value


def flat(tree: dict[str, Any]) -> dict[str, str]:
    """`section.key` to the value's repr, which tells 1 from 1.0 and from true."""
    return {f"{s}.{k}": repr(v) for s, fields in tree.items() for k, v in fields.items()}


def test_flower_app_config_is_the_configuration() -> None:
    """`flwr run .` offers every field of the configuration with its default, and none besides;
    what some method or task has a default of its own for is left open."""
    methods = {key for name in strategies.BUILTIN for key in strategies.load(name).defaults}
    methods |= {key for defaults in tasks.DEFAULTS.values() for key in defaults}
    expected = flat(
        {
            section: {
                key: run_value(None if f"{section}.{key}" in methods else value)
                for key, value in fields.items()
            }
            for section, fields in Config().model_dump().items()
        }
    )
    offered = flat(APP["config"])
    settings = {key for key in offered if key.startswith("strategy.")}  # each method's own
    assert {k: v for k, v in offered.items() if k in expected or k not in settings} == expected


@pytest.mark.parametrize("name", strategies.BUILTIN)
def test_flower_runs_a_method_as_the_command_line_does(name: str) -> None:
    """`strategy.name` alone chooses a method with its own documented defaults."""
    offered = {f"{s}.{k}": v for s, fields in APP["config"].items() for k, v in fields.items()}
    tree = settings.from_flat(offered | {"strategy.name": name})
    known = strategies.settings()
    config, method = settings.resolve(tree, strategies.load, ignore=known)
    given = {"strategy": {"name": name}}
    assert (config, method) == settings.resolve(given, strategies.load)


def test_version_is_said_once() -> None:
    """The package's version is the project's."""
    assert PROJECT["project"]["version"] == fedlora.__version__


def test_every_pin_is_exact_and_every_dependency_pinned() -> None:
    """Two installs of the same commit get the same direct dependencies."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    extras = PROJECT["project"]["optional-dependencies"].values()
    for requirement in sum(extras, PROJECT["project"]["dependencies"]):
        name = re.split("[>=[]", requirement)[0]
        assert name in pins, f"add {name} to constraints.txt"
