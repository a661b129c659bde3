"""Whole runs as processes of their own: fedlora's against a Flower app's on its Ray engine, and
with one worker and with two. The same rows, held in one file, and the same hyperparameters; nobody
evaluates, as the app does not, so that a round is its training and what it costs beside.

A round lasts from the end of the one before it to its own end, so the first is not counted: it has
part of the start-up. What it costs beyond its training steps is that less the seconds that the
busiest worker spent in its clients' loops of steps.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from fedlora import report, settings
from fedlora.config import Config
from fedlora.data import load
from fedlora.runs import RunDir

FEDLORA = "fedlora run"
FLOWERTUNE = "Flower app, Ray engine"
TIMEOUT = 600.0  # seconds of a run


class Round(NamedTuple):
    """Seconds of a round, and of its training steps on the critical path."""

    wall: float
    steps: float

    @property
    def beyond(self) -> float:
        return self.wall - self.steps


class Run(NamedTuple):
    """Seconds of a run, start-up and end included, and its rounds but the first."""

    seconds: float
    rounds: list[Round]


@dataclass(frozen=True)
class Load:
    """What everybody does: all clients in every round."""

    clients: int = 4
    rounds: int = 3
    steps: int = 5
    batch: int = 16


def write_rows(path: Path) -> None:
    """The training rows that fedlora gives the bundled data's clients, and whose they are."""
    federation = load(Config().data, Config().run.seed)
    with path.open("w", encoding="utf-8") as file:
        for client in federation.clients:
            for row in federation.train(client):
                label = federation.labels[row["label"]]
                told = {"text": row["text"], "label": label, "client": client}
                file.write(json.dumps(told) + "\n")


def critical(loops: Iterable[tuple[object, float]]) -> float:
    """The seconds of the busiest worker.

    Args:
        loops: (worker, seconds) of every client's loop of steps.
    """
    busy: dict[object, float] = {}
    for worker, seconds in loops:
        busy[worker] = busy.get(worker, 0.0) + seconds
    return max(busy.values())


def fedlora_run(load: Load, rows: Path, folder: Path, given: Mapping[str, object] = {}) -> Run:
    """FedIT by the command that a user gives, its checkpoints included."""
    tree = {
        "strategy.name": "fedit",
        "run.rounds": load.rounds,
        "run.dir": folder,
        "run.name": "run",
        "run.keep": "all",
        "data.name": rows,
        "data.by": "client",
        "data.test": 0,
        "data.public": 0,
        "data.holdout": 0,
        "train.steps": load.steps,
        "train.batch_size": load.batch,
        "simulation.workers": 2,
        **given,
    }
    command = [sys.executable, "-m", "fedlora", "run"]
    command += [f"{key}={value}" for key, value in tree.items()]
    seconds = _child(command, folder, on_gpu="simulation.device" in given)
    return Run(seconds, list(_rounds(RunDir.open(str(folder / "run")))))


def _rounds(run: RunDir) -> Iterator[Round]:
    """From commit to commit. Of clients that shared passes each tells an equal part of the loop's
    seconds; with no more such groups than workers, every group has a worker to itself."""
    simulation = settings.read(run.path / "config.toml", [])["simulation"]
    copies, workers = simulation["copies"], simulation["workers"]
    clients = [row for row in report.load(run.metrics) if row["kind"] == "client"]
    ended = {n: (run.round(n) / "checkpoint.json").stat().st_mtime for n in run.rounds()}
    for before, number in pairwise(sorted(ended)):
        if not before:
            continue
        loops = [row["seconds"] for row in clients if row["round"] == number]
        assert -(-len(loops) // copies) <= workers, "a worker has several groups, of unknown order"
        steps = critical((i // copies, s) for i, s in enumerate(loops))
        yield Round(ended[number] - ended[before], steps)


def flowertune_run(load: Load, rows: Path, folder: Path) -> Run:
    """The Flower app, with Ray's start and end."""
    log = folder / "rounds.jsonl"
    given = {
        "data": rows,
        "log": log,
        "clients": load.clients,
        "rounds": load.rounds,
        "steps": load.steps,
        "batch-size": load.batch,
        "rank": Config().adapter.rank,
        "lr": Config().train.lr,
        "cores": 2,
    }
    command = [sys.executable, "-m", "simulations.benchmarks.flowertune"]
    seconds = _child([*command, *(f"--{key}={value}" for key, value in given.items())], folder)
    lines = log.read_text("utf-8").splitlines()
    return Run(seconds, list(_logged([json.loads(line) for line in lines])))


def _logged(log: Sequence[Mapping[str, Any]]) -> Iterator[Round]:
    for before, line in pairwise(log):
        steps = critical((c["worker"], c["seconds"]) for c in line["clients"])
        yield Round(line["ended"] - before["ended"], steps)


def _child(command: list[str], folder: Path, on_gpu: bool = False) -> float:
    """Seconds of a command, in an empty folder, with caches and settings of its own."""
    for made in ("flwr", "datasets"):
        (folder / made).mkdir(parents=True)
    env = os.environ | {
        "FLWR_HOME": str(folder / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_TMPDIR": str(folder),
        "RAY_USAGE_STATS_ENABLED": "0",
        "HF_DATASETS_CACHE": str(folder / "datasets"),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
        **({} if on_gpu else {"CUDA_VISIBLE_DEVICES": ""}),
    }
    started = time.perf_counter()
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=TIMEOUT)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"{done.stderr[-4000:]}\n{command[1:3]} ended with {done.returncode}")
    return seconds


def against_ray(load: Load, repeats: int, folder: Path) -> dict[str, list[Run]]:
    """Runs of both, by turns."""
    rows = folder / "rows.jsonl"
    write_rows(rows)
    contenders = {FEDLORA: fedlora_run, FLOWERTUNE: flowertune_run}
    found: dict[str, list[Run]] = {name: [] for name in contenders}
    for repeat in range(repeats):
        for name in list(contenders)[:: 1 if repeat % 2 else -1]:
            place = folder / f"{name[0]}{repeat}"  # short: Ray's sockets are in it
            found[name].append(contenders[name](load, rows, place))
    return found


def by_workers(load: Load, repeats: int, folder: Path) -> dict[int, list[Run]]:
    """fedlora's runs with one worker and with two, by turns."""
    rows = folder / "workers.jsonl"
    write_rows(rows)
    found: dict[int, list[Run]] = {1: [], 2: []}
    for repeat in range(repeats):
        for workers in (1, 2) if repeat % 2 else (2, 1):
            given = {
                "data.partition": "iid",
                "data.clients": load.clients,
                "simulation.workers": workers,
            }
            place = folder / f"workers-{workers}-{repeat}"
            found[workers].append(fedlora_run(load, rows, place, given))
    return found
