"""What a round costs beside the passes through the model, and what crosses beside the numbers.

    python -m simulations.benchmarks.overhead --json overhead.json

Whole federations by `simulations.run.simulate`, with everything that a round has: orders and
replies as Flower's messages, worker processes, clients' stores, screening, aggregation, evaluation,
a checkpoint. Only the model's frozen layers are left out (see `idle`). Two minutes on two cores.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from time import perf_counter
from typing import Any, get_args

import torch
from rich import box
from rich.console import Console
from rich.table import Table

import strategies
from fedlora import profile, settings
from fedlora.config import Config
from fedlora.data import load
from fedlora.profile import Profile
from fedlora.progress import Observer
from fedlora.strategy import Strategy
from simulations.benchmarks.everybody import Everybody
from simulations.benchmarks.timing import Spread, spread
from simulations.benchmarks.weight import SENDS, Weight, weigh
from simulations.run import pool, simulate

METHODS = ("FedIT", "FedEx", "FedSA")
WORKERS = (2, 1)
CLIENTS = 20
RANK = 8
PASSES = ("forward and backward", "optimizer", "evaluate")
MOST = 15.0  # ms a client
RATIO = 1.01
NOTES = [
    "In the time: sampling, orders, messages to and from bytes, pipes, what stays on clients' "
    "disks, adapters in and out of the model, one step of one row and the scoring of one by a "
    "model without its frozen layers, the optimizer, screening, aggregation, the checkpoint.",
    "Not in it: start-up and the first round, which has the first contact.",
    "Seconds are from one round's commit to the next; passes: the busiest process's share of them "
    "that belongs to training steps and scoring, measured by the profile of the same rounds.",
    "FedEx's exact residual of 20 clients grows by its rank, at most 152, in each of 12 modules: "
    "5.6 MB more for each client then, where an adapter has 0.3; one step of one row leaves it far "
    "less. Its decomposition and its bytes are what its rounds take, beyond the others'.",
    "Bytes: whole messages of a later round, serialised, a client; numbers: 4 bytes for each that "
    "the method sends.",
]


class Clock(Everybody):
    """When each round was committed."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.down: list[int] = []

    def round(self, row: Mapping[str, Any]) -> None:
        self.times.append(perf_counter())
        self.down.append(row["bytes_down"])


@dataclass(frozen=True)
class Round:
    """A later round: ms a client, MB sent to it, and by process and span what the ms went to."""

    milliseconds: float
    down: float
    spans: dict[str, dict[str, float]]

    @property
    def passes(self) -> float:
        """Those of the busiest process."""
        return max(sum(s.get(name, 0.0) for name in PASSES) for s in self.spans.values())


def write_rows(folder: Path, clients: int) -> None:
    """Rows of the bundled data: for every client one to train on and one held out, for the server
    one to score."""
    federation = load(Config().data, Config().run.seed)
    for name, rows, count in (
        ("train", federation.rows, 2 * clients),
        ("test", federation.test, 1),
    ):
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for row in rows.select(range(count)):
                label = federation.labels[row["label"]]
                file.write(json.dumps({"text": row["text"], "label": label}) + "\n")


def configured(folder: Path, name: str, method: str, **given: Any) -> tuple[Config, Strategy]:
    """A run of a method over the folder's rows, one step of one row a client."""
    run = {"name": name, "dir": str(folder / "runs"), "rounds": given["rounds"]}
    data = {"name": str(folder), "partition": "iid", "clients": given["clients"]}
    tree = {
        "run": run,
        "model": {"task": "idle"},
        "adapter": {"rank": RANK},
        "data": {**data, "public": 0, "holdout": 0.5},
        "strategy": {"name": f"simulations.benchmarks.idle:{method}"},
        "train": {"steps": 1, "batch_size": 1},
        "simulation": {"workers": given["workers"]},
    }
    return settings.resolve(tree, strategies.load)


def timed(config: Config, strategy: Strategy) -> list[Round]:
    """All rounds of a run but the first."""
    watch, found = Clock(), Profile()

    @contextmanager
    def watching(_: Path) -> Iterator[Observer]:
        yield watch

    with profile.recording(found), pool(config) as workers:
        simulate(config, strategy, workers, watching)
    found.end()
    scale = 1e3 / config.data.clients
    return [
        Round(
            scale * (end - start),
            watch.down[number] / 1e6 / config.data.clients,
            {
                who: {span: scale * s for span, s in rounds.get(str(number), {}).items()}
                for who, rounds in found.rounds.items()
            },
        )
        for number, (start, end) in enumerate(pairwise(watch.times), 1)
        if number > 1
    ]


def measure(
    folder: Path, clients: int, rounds: int, repeats: int
) -> dict[tuple[str, int], list[Round]]:
    """Rounds by method and number of workers; runs of all of them by turns."""
    both = [(method, workers) for workers in WORKERS for method in METHODS]
    found: dict[tuple[str, int], list[Round]] = {key: [] for key in both}
    for repeat in range(repeats):
        for method, workers in both[:: 1 if repeat % 2 else -1]:
            name = f"{method}-{workers}-{repeat}"
            given = {"clients": clients, "rounds": rounds, "workers": workers}
            found[method, workers] += timed(*configured(folder, name, method, **given))
    return found


def weights(folder: Path, clients: int) -> list[Weight]:
    """Of every method that METHODS of the wire has."""
    given = {"clients": clients, "rounds": 2, "workers": 0}
    return [
        weight
        for method in SENDS
        for weight in weigh(
            method, RANK, *configured(folder, f"{method}-w", method, **given), Clock()
        )
    ]


def targets(
    found: Mapping[tuple[str, int], Sequence[Round]], sent: Sequence[Weight]
) -> list[dict[str, Any]]:
    """What is to be reached, and what was."""
    told = []
    for method in METHODS:
        taken = median(r.milliseconds for r in found[method, WORKERS[0]])
        what = f"ms a client in a round without training steps, {method}, {WORKERS[0]} workers"
        told.append(_target(what, f"≤ {MOST:.0f}", f"{taken:.1f}", taken <= MOST))
    for method in SENDS:
        own = [w for w in sent if w.method == method]
        ratio = sum(w.messages for w in own) / sum(w.numbers for w in own)
        what = f"bytes sent over the theoretical ones, {method}, r = {RANK}"
        told.append(_target(what, f"≤ {RATIO}", f"{ratio:.4f}", ratio <= RATIO))
    return told


def _target(what: str, target: str, measured: str, met: bool) -> dict[str, Any]:
    return {"what": what, "target": target, "measured": measured, "met": met}


def tables(
    found: Mapping[tuple[str, int], Sequence[Round]], sent: Sequence[Weight]
) -> list[dict[str, Any]]:
    """Rows of text, for the terminal and for JSON."""
    times = [
        [
            method,
            str(workers),
            _bracketed(spread([r.milliseconds for r in rounds])),
            f"{median(r.passes for r in rounds):.1f}",
            f"{mean(r.down for r in rounds):.2f}",
            str(len(rounds)),
        ]
        for (method, workers), rounds in found.items()
    ]
    bytes = [
        [w.method, w.way, f"{w.messages:,.0f}", f"{w.numbers:,}", f"{w.ratio:.4f}"] for w in sent
    ]
    weighed = ["method", "way", "bytes a client", "of numbers", "ratio"]
    taken = ["method", "workers", "ms a client", "of that passes", "MB down", "rounds"]
    return [
        {"title": "A round without training steps", "columns": taken, "rows": times},
        _where({method: found[method, WORKERS[0]] for method in METHODS}),
        {"title": f"A later round's messages at r = {RANK}", "columns": weighed, "rows": bytes},
    ]


def _where(found: Mapping[str, Sequence[Round]]) -> dict[str, Any]:
    """Medians over rounds, by span: the server's, and the mean of the workers'."""
    columns, cells = ["ms a client"], []
    for method, rounds in found.items():
        columns += [f"{method} server", "workers"]
        cells += [
            lambda span, rounds=rounds: median(r.spans["server"].get(span, 0) for r in rounds),
            lambda span, rounds=rounds: median(
                mean(s.get(span, 0) for who, s in r.spans.items() if who != "server")
                for r in rounds
            ),
        ]
    rows = [[span, *(f"{cell(span):.2f}" for cell in cells)] for span in get_args(profile.Span)]
    title = f"Where it goes, {WORKERS[0]} workers"
    return {"title": title, "columns": columns, "rows": rows}


def _bracketed(s: Spread) -> str:
    return f"{s.median:.1f} ({s.low:.1f}–{s.high:.1f})"


def _shown(table: dict[str, Any]) -> Table:
    shown = Table(title=table["title"], box=box.SIMPLE_HEAD)
    for i, header in enumerate(table["columns"]):
        shown.add_column(header, justify="right" if i else "left")
    for row in table["rows"]:
        shown.add_row(*row)
    return shown


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the tables, and write the JSON file if asked to."""
    parser = argparse.ArgumentParser(description="What a round costs beside its passes.")
    parser.add_argument("--quick", action="store_true", help="four clients, few rounds")
    parser.add_argument("--json", type=Path, help="where to write the results")
    given = parser.parse_args(arguments)
    clients, rounds, repeats = (4, 3, 1) if given.quick else (CLIENTS, 7, 2)
    torch.set_num_threads(1)
    started = perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        write_rows(Path(folder), clients)
        found = measure(Path(folder), clients, rounds, repeats)
        sent = weights(Path(folder), clients)
    told = {
        "benchmark": "overhead",
        "title": "What a round costs beside its passes, and what crosses beside the numbers",
        "seconds": perf_counter() - started,
        "tables": tables(found, sent),
        "targets": targets(found, sent),
        "notes": NOTES,
        "raw": {
            "rounds": [
                {"method": m, "workers": w, "rounds": [asdict(r) for r in rounds]}
                for (m, w), rounds in found.items()
            ],
            "weights": [w._asdict() for w in sent],
        },
    }
    for table in tables(found, sent):
        Console().print(_shown(table))
    for target in targets(found, sent):
        Console().print(f"{target['what']}: {target['measured']}, to reach {target['target']}")
    if given.json:
        given.json.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
