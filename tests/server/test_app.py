"""The ServerApp as Flower calls it: a grid, and the run-config of the app's own table."""

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


def test_flowers_run_config_runs_and_leaves_what_the_command_line_does(
    world: World, tmp_path: Path
) -> None:
    """The published keys with a few overridden, flat and as scalars, make a whole run: another
    method with its own defaults, checkpoints, the adapter and the curves."""
    over = {"strategy.name": "ffa", "run.rounds": 1, "run.name": "app"}
    tree = world.tree(tmp_path, over)
    tree["train"].pop("lr")
    config, _ = settings.resolve(tree, strategies.load)
    flat = {f"{s}.{k}": v for s, table in TABLES.items() for k, v in table.items()}
    given = settings.to_flat(config)
    flat |= {k: given[k] for k in given if k.partition(".")[0] in ("run", "model", "data")}
    flat |= {"strategy.name": "ffa", "train.steps": 1}
    flat |= {k: given[k] for k in ("adapter.rank", "adapter.target_modules")}

    grid = InProcessGrid(config, 2, tmp_path / "clients", Pool(0, 1))  # the data makes three
    grid._run_config = flat
    app(grid, Context(1, 0, {}, RecordDict(), flat))
    run = tmp_path / "app"
    assert settings.read(run / "config.toml", [])["train"]["lr"] == 0.01
    assert (run / "adapter/adapter_model.safetensors").is_file()
    assert (run / "curves.png").is_file()
    assert "3 clients, but only 2 nodes" in (run / "log.txt").read_text("utf-8")
