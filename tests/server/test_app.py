"""The ServerApp as Flower calls it: a grid, and the run-config of the app's own table."""

import json
import tomllib
from pathlib import Path

from flwr.app import Context, RecordDict

import strategies
from fedlora import settings
from server.app import app
from simulations.grid import InProcessGrid
from simulations.pool import Pool
from tests.federation import World

TABLE = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))
TABLES = TABLE["tool"]["flwr"]["app"]["config"]


def scalar(value: object) -> bool | int | float | str:
    """As Flower's run-config holds it: lists are JSON strings."""
    return json.dumps(value) if isinstance(value, list) else value  # type: ignore[return-value]


def test_flowers_run_config_runs_and_leaves_what_the_command_line_does(
    world: World, tmp_path: Path
) -> None:
    """The published keys with a few overridden, flat and as scalars, make a whole run: another
    method with its own defaults, checkpoints, the adapter and the curves."""
    tree = world.tree(tmp_path, {"run.rounds": 1, "run.name": "app", "train.steps": 1})
    tree["train"] = {"steps": 1}  # the rate stays the method's own
    flat = {f"{s}.{k}": v for s, table in TABLES.items() for k, v in table.items()}
    flat |= {f"{s}.{k}": scalar(v) for s, table in tree.items() for k, v in table.items()}
    flat["strategy.name"] = "ffa"
    given = settings.from_flat(flat)
    config, _ = settings.resolve(given, strategies.load, ignore=strategies.settings())
    grid = InProcessGrid(config, 2, tmp_path / "clients", Pool(0, 1))  # the data makes three
    app(grid, Context(1, 0, {}, RecordDict(), flat))
    run = tmp_path / "app"
    assert settings.read(run / "config.toml", [])["train"]["lr"] == 0.01
    assert (run / "adapter/adapter_model.safetensors").is_file()
    assert (run / "curves.png").is_file()
    assert "3 clients, but only 2 nodes" in (run / "log.txt").read_text("utf-8")
