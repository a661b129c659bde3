"""The benchmark of many clients says what it measured, of runs as it describes them."""

import json
from pathlib import Path

import psutil
import pytest

import strategies
from fedlora import settings
from simulations.benchmarks import scale, watched
from simulations.benchmarks.scale import Found, Size
from simulations.benchmarks.watched import Watched
from tests.federation import World

MB = 10**6


def found(clients: int, sampled: int, together: int, worker: int, seconds: float) -> Found:
    """Two runs of 2 MB about these peaks, whose first rounds are to be left out."""
    runs = [
        Watched(300 * MB, (worker + d) * MB, (together + d) * MB, 9.0, [50.0, seconds], MB / 2)
        for d in (-1, 1)
    ]
    return Found(Size(clients, sampled, 2), runs)


def met(*sizes: Found) -> dict[str, bool]:
    return {t["what"].split(",")[0]: t["met"] for t in scale.targets(sizes)}


def test_targets_are_met_by_what_hardly_grows() -> None:
    """A tenth of memory and of time from the least to the most; many sampled clients one update
    beyond what equal runs differ by."""
    few = found(100, 20, 1000, 400, 2.0), found(1000, 20, 1090, 400, 2.1)
    many = found(1000, 20, 9000, 400, 9.0), found(1000, 200, 2000, 402, 20.0)
    told = scale.targets([*few, *many])
    assert [t["met"] for t in told] == [True] * 4
    assert [t["measured"] for t in told][:3] == [
        "9.0% more",
        "5.0% more",
        "+2.0 MB (equal runs: 2.0 MB apart)",
    ]
    assert told[2]["target"] == "≤ one update (0.50 MB) more than equal runs are apart"
    assert not met(*few, many[0], found(1000, 200, 2000, 403, 20.0))["memory of a worker"]
    grown = met(few[0], found(1000, 20, 1110, 400, 2.3), *many)
    assert not grown["memory of all processes"] and not grown["seconds a round"]


def test_the_table_leaves_first_rounds_out() -> None:
    """Peaks are the runs' medians; the round in which clients first come is not the usual one."""
    row = scale.table([found(10000, 20, 1000, 400, 2.0)])["rows"][0]
    assert row == ["10,000", "20", "2", "300", "400", "1000", "2.00 (2.00–2.00)", "9.0"]
    assert len(row) == len(scale.COLUMNS)


def test_every_client_has_four_rows_of_its_own(tmp_path: Path) -> None:
    """As many as there are, whatever the bundled data has, and no fewer for the settings' sake."""
    size = Size(5000, 20, 3)
    folder = scale.write(tmp_path / "rows", size.clients)
    lines = (folder / "train.jsonl").read_text().splitlines()
    assert len(lines) == 4 * size.clients and {*json.loads(lines[-1])} >= {"text", "label"}
    tree = settings.parse([*scale.settings(size), f"data.name={folder}"])
    config, _ = settings.resolve(tree, strategies.load)
    assert (config.data.rows, config.run.clients_per_round, config.method) == (4, 20, "fedsa")


def test_memory_is_the_most_of_each_and_of_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is past its peak counts no more for what all take together."""

    class Process:
        def __init__(self, own: int, workers: list[int]) -> None:
            self.own, self.workers = own, workers

        def children(self, recursive: bool) -> "list[Process]":
            return [Process(own, []) for own in self.workers]

    monkeypatch.setattr(watched, "taken", lambda process: process.own)
    seen = Watched()
    for own, workers in ((5, [1, 2]), (1, [4, 4]), (2, [])):
        watched.look(Process(own, workers), seen)  # type: ignore[arg-type]
    assert (seen.parent, seen.worker, seen.together) == (5, 4, 9)
    monkeypatch.undo()
    assert watched.taken(psutil.Process()) > 10 * MB


@pytest.mark.slow
def test_a_run_is_watched(world: World, tmp_path: Path) -> None:
    """A federation of a few clients, whole; one that fails says why."""
    data = f"data.name={scale.write(tmp_path / 'rows', 6)}"
    small = [
        f"model.name={world.model}",
        "adapter.rank=4",
        "data.max_length=16",
        'adapter.target_modules=["query"]',
        data,
    ]
    run = watched.watched([*scale.settings(Size(6, 2, 2)), *small], tmp_path / "run")
    assert len(run.rounds) == 2 and run.start > 0 and run.update == 2 * 4 * 32 * 4
    assert min(run.parent, run.worker) > 10 * MB and run.together > run.parent
    with pytest.raises(SystemExit, match=r"run\.rounds"):
        watched.watched(["run.rounds=none"], tmp_path / "wrong")
