"""The ServerApp as Flower calls it: a grid, and the run-config of the app's own table."""

import json
import tomllib
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict

import strategies
from fedlora import settings
from fedlora.errors import UserError
from fedlora.runs import RunDir
from server.app import app
from server.events import Event, opening, parse
from simulations.grid import InProcessGrid
from simulations.pool import Pool
from tests.federation import World

TABLE = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))
TABLES = TABLE["tool"]["flwr"]["app"]["config"]


def scalar(value: object) -> bool | int | float | str:
    """As Flower's run-config holds it: lists are JSON strings."""
    return json.dumps(value) if isinstance(value, list) else value  # type: ignore[return-value]


def run_config(world: World, root: Path, **submit: object) -> dict[str, object]:
    """The app's own table with a small run of FFA laid over, as `flwr run` or `submit` gives it."""
    tree = world.tree(root, {"run.rounds": 1, "run.name": "app"})
    tree["train"] = {"steps": 1}  # the rate stays the method's own
    flat = {f"{s}.{k}": v for s, table in TABLES.items() for k, v in table.items()}
    flat |= {f"{s}.{k}": scalar(v) for s, table in tree.items() for k, v in table.items()}
    flat["strategy.name"] = "ffa"
    return flat | {f"submit.{k}": v for k, v in submit.items()}


def start(flat: dict[str, object], root: Path, nodes: int = 3) -> None:
    """Call the ServerApp as Flower does."""
    given = settings.from_flat({k: v for k, v in flat.items() if not k.startswith("submit.")})
    config, _ = settings.resolve(given, strategies.load, ignore=strategies.settings())
    grid = InProcessGrid(config, nodes, root / "clients", Pool(0, 1))
    app(grid, Context(1, 0, {}, RecordDict(), flat))  # type: ignore[arg-type]


def heard(capsys: pytest.CaptureFixture[str]) -> dict[str, list[Event]]:
    """The events printed since the last look, by kind."""
    kinds: dict[str, list[Event]] = {}
    lines = capsys.readouterr().out.splitlines()
    token = next(filter(None, map(opening, lines)))
    for line in lines:
        if event := parse(line, token):
            kinds.setdefault(event.kind, []).append(event)
    return kinds


def test_flowers_run_config_runs_and_leaves_what_the_command_line_does(
    world: World, tmp_path: Path
) -> None:
    """The published keys with a few overridden, flat and as scalars, make a whole run: another
    method with its own defaults, checkpoints, the adapter and the curves."""
    flat = run_config(world, tmp_path)
    start(flat, tmp_path, nodes=2)  # the data makes three
    run = tmp_path / "app"
    assert settings.read(run / "config.toml", [])["train"]["lr"] == 0.01
    assert (run / "adapter/adapter_model.safetensors").is_file()
    assert (run / "curves.png").is_file()
    assert "3 clients, but only 2 nodes" in (run / "log.txt").read_text("utf-8")


def test_a_submitted_run_tells_all_and_goes_on_to_the_same_bits(
    world: World,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Progress, files and the end as events, in $FEDLORA_RUNS; resumed for a second round, it is
    what two rounds at once give."""
    states = {}
    for folder, rounds in (("once", [2]), ("twice", [1, 2])):
        monkeypatch.setenv("FEDLORA_RUNS", str(tmp_path / folder))
        for part, count in enumerate(rounds):
            flat = run_config(world, tmp_path / folder, run="far", resume=part > 0)
            start(flat | {"run.rounds": count, "run.name": "far"}, tmp_path / folder)
            kinds = heard(capsys)
            assert [e.fields["row"]["round"] for e in kinds["round"]][-1] == count
            assert len(kinds["files"]) == len(kinds["end"]) == 1 and "error" not in kinds
            sent = kinds["files"][0].fields["files"]
            assert {"curves.png", "log.txt", f"round-000{count}/state.safetensors"} <= sent.keys()
        states[folder] = (tmp_path / folder / "far/round-0002/state.safetensors").read_bytes()
    assert states["once"] == states["twice"]


@pytest.mark.parametrize("resume", [False, True])
def test_a_submitted_run_that_cannot_begin_says_why(
    resume: bool, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A name that is taken, or a run that is not there: an error event, and the app fails."""
    if not resume:
        (tmp_path / "app").mkdir()
    with pytest.raises(UserError):
        start(run_config(world, tmp_path, run="app", resume=resume), tmp_path)
    kinds = heard(capsys)
    assert ("there is no run" if resume else "exists") in kinds["error"][0].fields["text"]
    assert kinds.keys() == {"error", "end"}


def test_a_failure_before_the_first_round_leaves_nothing(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model that is not there: said, and the directory is gone."""
    flat = run_config(world, tmp_path, run="app", resume=False)
    with pytest.raises(UserError):
        start(flat | {"model.name": str(tmp_path / "none")}, tmp_path)
    assert heard(capsys).keys() >= {"error", "end"} and not (tmp_path / "app").exists()


def test_a_resumed_run_keeps_its_configuration_and_its_one_server(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another seed is refused by name; so is a directory that a live server has, of which nothing
    is touched or sent."""
    start(run_config(world, tmp_path, run="app", resume=False), tmp_path)
    flat = run_config(world, tmp_path, run="app", resume=True)
    with pytest.raises(UserError, match=r"but run\.seed is not as when app began"):
        start(flat | {"run.seed": 1}, tmp_path)
    heard(capsys)
    with RunDir(tmp_path / "app").held(), pytest.raises(UserError, match="another process"):
        start(flat | {"run.rounds": 2}, tmp_path)
    assert heard(capsys).keys() == {"error", "end"}
    assert settings.read(tmp_path / "app/config.toml", [])["run"]["rounds"] == 1


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "/tmp/a"])
def test_a_submitted_name_stays_in_the_folder(name: str, world: World, tmp_path: Path) -> None:
    """A run's name is no path."""
    with pytest.raises(UserError, match="is no name for a run directory"):
        start(run_config(world, tmp_path, run=name, resume=True), tmp_path)
