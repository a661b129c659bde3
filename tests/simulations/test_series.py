"""A comparison in its folder: it goes on where it was stopped, to the same bits."""

import csv
import json
import shutil
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from fedlora import cli, data, settings
from fedlora.errors import UserError
from fedlora.runs import held
from server.loop import Coordinator
from simulations import series
from tests.federation import Watch, World

Called = Callable[..., tuple[Any, str, str]]  # exit code, output, error
METHODS = ("fedsa", "fedsb")
RUNS = ["fedsa-seed0", "fedsb-seed0", "fedsa-seed3", "fedsb-seed3"]

# The command, whose process is killed with a round of the second run done and not yet committed.
KILLED = """
import os, signal, sys
from fedlora import cli
from fedlora.runs import RunDir

commit = RunDir.commit

def killed(run, checkpoint, aside, *settings):
    if run.path.name == "fedsb-seed0" and checkpoint.round == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    commit(run, checkpoint, aside, *settings)

RunDir.commit = killed
cli.main()
"""


def tree(world: World, root: Path, name: str = "whole") -> settings.Tree:
    return world.tree(root, {"run.rounds": 2, "run.name": name})


def quiet(rounds: int) -> Any:
    return lambda log: nullcontext(Watch())


@pytest.fixture(scope="module")
def whole(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a comparison that nothing disturbed."""
    given = tree(world, tmp_path_factory.mktemp("series"))
    plan = series.planned(given, {}, ",".join(METHODS), "0,3", False)
    folder = series.place(plan)
    left = series.contenders(plan, folder)
    series.create(folder, plan)
    series.carry_out(folder, plan, left, quiet, lambda line: None)
    return folder


@pytest.fixture
def fedlora(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Called:
    def call(*arguments: str) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", ["fedlora", "compare", *arguments])
        with pytest.raises(SystemExit) as exit:
            cli.main()
        found = capsys.readouterr()
        return exit.value.code, found.out, found.err

    return call


def timeless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in rows]


def outcome(folder: Path) -> dict[str, Any]:
    """All that a comparison leaves, to the bit, but times and the experiments' names."""
    found: dict[str, Any] = {"": sorted(p.name for p in folder.iterdir())}
    for name in ("comparison.csv", "runs.csv"):
        with (folder / name).open() as file:
            found[name] = timeless(list(csv.DictReader(file)))
    for run in sorted(folder.glob("*-seed*")):
        for part in ("round-0002/state", "adapter/adapter_model"):
            found[f"{run.name}/{part}"] = (run / f"{part}.safetensors").read_bytes()
        lines = (run / "metrics.jsonl").read_text().splitlines()
        found[run.name] = timeless([json.loads(line) for line in lines])
    return found


def test_the_folder_has_a_run_a_method_and_seed(whole: Path) -> None:
    """Each a whole run directory of that seed, whose rows are that seed's; no aside is left."""
    assert sorted(p.parent.name for p in whole.glob("*/run.json")) == sorted(RUNS)
    for name in RUNS:
        config = settings.read(whole / name / "config.toml", [])
        assert config["run"]["seed"] == int(name[-1])
    states = {outcome(whole)[f"fedsa-seed{s}/round-0002/state"] for s in (0, 3)}
    assert len(states) == 2
    files = {"comparison.json", "comparison.csv", "comparison.md", "comparison.tex", ".lock"}
    files |= {"origin.json", "split.json", "runs.csv", "comparison.png"}
    assert {p.name for p in whole.iterdir()} == files | {*RUNS}


def test_killed_in_a_round_it_ends_in_the_same_bits(
    world: World, whole: Path, tmp_path: Path, fedlora: Called
) -> None:
    """SIGKILL in the middle of a run: finished runs are kept as they are, that one goes on from its
    last whole round, the rest is run, and all of it is what an undisturbed comparison leaves."""
    config = tmp_path / "small.toml"
    config.write_text(tomli_w.dumps(tree(world, tmp_path, "cut")))
    asked = ["--strategies", ",".join(METHODS), "--seeds", "0,3", "--no-baselines"]
    command = [sys.executable, "-c", KILLED, "compare", str(config), *asked]
    ended = subprocess.run(command, capture_output=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    folder = tmp_path / "cut"
    assert [p.parent.name for p in folder.glob("*/result.json")] == ["fedsa-seed0"]
    assert not (folder / "fedsb-seed0/round-0002").exists()
    kept = (folder / "fedsa-seed0/result.json").stat().st_mtime_ns
    begun = json.loads((folder / "fedsb-seed0/run.json").read_text())

    code, out, err = fedlora("--resume", str(folder))
    assert code in (0, None), err
    assert "fedsb, seed 0: 2 rounds" in out and "fedsa, seed 0" not in out
    assert (folder / "fedsa-seed0/result.json").stat().st_mtime_ns == kept
    assert json.loads((folder / "fedsb-seed0/run.json").read_text()) == begun
    assert outcome(folder) == outcome(whole)


def _while_a_directory_is_made(folder: Path) -> None:
    shutil.rmtree(folder / "fedsb-seed3/round-0001")
    shutil.rmtree(folder / "fedsb-seed3/round-0002")
    (folder / "fedsb-seed3").rename(folder / ".fedsb-seed3.4711")


def _before_the_result(folder: Path) -> None:
    (folder / "fedsb-seed3/result.json").unlink()


def _within_the_result(folder: Path) -> None:
    _before_the_result(folder)
    (folder / "fedsb-seed3/.result.json.new").write_text('{"method": "fed')


def _before_the_tables(folder: Path) -> None:
    for name in ("comparison.csv", "runs.csv", "comparison.png"):
        (folder / name).unlink()
    (folder / ".comparison.csv.partial").write_text("method,se")


@pytest.mark.parametrize(
    "killed",
    [_while_a_directory_is_made, _before_the_result, _within_the_result, _before_the_tables],
)
def test_killed_at_other_moments(
    whole: Path, tmp_path: Path, killed: Callable[[Path], None]
) -> None:
    """What such a process leaves is gone on from, and nothing half-written stays."""
    folder = tmp_path / "copy"
    shutil.copytree(whole, folder)
    killed(folder)
    folder, plan = series.opened(str(folder))
    series.carry_out(folder, plan, series.contenders(plan, folder), quiet, lambda line: None)
    assert outcome(folder) == outcome(whole)
    assert {p.name for p in folder.rglob(".*")} == {".lock"}


def test_a_finished_comparison_is_only_printed(
    whole: Path, monkeypatch: pytest.MonkeyPatch, fedlora: Called
) -> None:
    """Nothing is loaded, run or changed."""

    def never(*_: object) -> None:
        raise AssertionError("there is nothing left to do")

    for name in ("pool", "simulate", "trained_parameters"):
        monkeypatch.setattr(series, name, never)
    monkeypatch.setattr(data, "load", never)
    before = {p: p.stat().st_mtime_ns for p in whole.glob("*/**/*")}
    tables = {p: p.read_bytes() for p in whole.glob("*.*") if p.is_file()}
    code, out, err = fedlora("--resume", str(whole))
    assert code in (0, None), err
    assert "mean ± sample deviation over the seeds 0, 3" in out and "seed 0:" not in out
    assert {p: p.stat().st_mtime_ns for p in whole.glob("*/**/*")} == before
    assert {p: p.read_bytes() for p in tables} == tables


def test_a_run_goes_on_with_its_own_configuration(whole: Path, tmp_path: Path) -> None:
    """Not with what the plan comes to today: what was chosen when it began stands in there."""
    folder = tmp_path / "copy"
    shutil.copytree(whole, folder)
    (folder / "fedsb-seed3/result.json").unlink()
    folder, plan = series.opened(str(folder))
    (one,) = series.contenders(plan, folder)
    assert one.run and one.config.simulation.copies and one.config.simulation.memory


def test_a_stopped_comparison_says_how_to_go_on(
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fedlora: Called,
) -> None:
    """Ctrl-C: with the comparison's folder, not the run's."""
    (tmp_path / "small.toml").write_text(tomli_w.dumps(tree(world, tmp_path, "cut")))

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Coordinator, "_round", stop)
    code, _, err = fedlora(str(tmp_path / "small.toml"), "--strategies", "fedit")
    go_on = f"go on with: fedlora compare --resume {tmp_path / 'cut'}\n"
    assert (code, err) == (130, f"stopped; {go_on}")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seeds", "0,0"], "the same seed twice gives the same run twice"),
        (["--seeds", "0,x"], "--seeds 0,x: write whole numbers with commas between"),
        (["--seeds", ""], "write whole numbers"),
        (["--strategies", ",", "--no-baselines"], "there is no method to compare"),
        (["fedit.run.seed=3"], "fedit.run.seed: all methods of a comparison have the same"),
        (["--strategies", "fedit,ffa", "ffa.adapter.target_modules=qury"], "matches no module"),
        (["--resume", "nothing"], "there is no comparison 'nothing' in runs/"),
        (["--resume", "{whole}", "train.lr=1.0"], "keeps its methods, seeds and settings"),
        (["--resume", "{whole}", "--seeds", "0"], "keeps its methods, seeds and settings"),
        (["--resume", "{damaged}"], "comparison.json is damaged"),
    ],
)
def test_mistakes_are_found_before_anything_trains(
    world: World,
    whole: Path,
    tmp_path: Path,
    fedlora: Called,
    arguments: list[str],
    words: str,
) -> None:
    """One message, exit code 2, and no folder."""
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/comparison.json").write_text("{")
    config = tmp_path / "small.toml"
    config.write_text(tomli_w.dumps(tree(world, tmp_path, "new")))
    given = [a.format(whole=whole, damaged=tmp_path / "damaged") for a in arguments]
    code, out, err = fedlora(*([] if "--resume" in given else [str(config)]), *given)
    assert words in err
    assert (code, out) == (2, "")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["damaged", "small.toml"]


def test_each_seed_has_its_own_rows_one_after_another(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every seed's division is checked, and one is gone when the next is loaded."""
    loaded: list[tuple[int, weakref.ref[Any]]] = []
    load = data.load

    def watched(section: Any, seed: int, kind: Any) -> Any:
        assert all(federation() is None for _, federation in loaded)
        if seed == 5:
            raise UserError("client small has no rows left")
        federation = load(section, seed, kind)
        loaded.append((seed, weakref.ref(federation)))
        return federation

    monkeypatch.setattr(data, "load", watched)
    plan = series.planned(tree(world, tmp_path), {}, "fedit", "0,4,5", True)
    with pytest.raises(UserError, match="client small"):
        series.contenders(plan, tmp_path / "whole")
    assert [seed for seed, _ in loaded] == [0, 4]


def test_two_processes_do_not_run_one_comparison(whole: Path) -> None:
    """The second is told so."""
    _, plan = series.opened(str(whole))
    with (
        held(whole, "mine"),
        pytest.raises(UserError, match="is being run by another process"),
    ):
        series.carry_out(whole, plan, [], quiet, lambda line: None)
