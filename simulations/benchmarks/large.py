"""The server of a large model's federation: memory, time, bytes and disk, by method.

    python -m simulations.benchmarks.large --json large.json
    python -m simulations.benchmarks.large --all          # 8B × 50 too, and FedEx without a cap

The shapes are real: Llama-3.2-1B and Llama-3-8B, all seven linears of every layer, r = 16. Nothing
is trained, and there is no base model: clients are stand-ins that answer with noise, and what is
measured is the server, whose rounds are a run's own (see `standins`).
"""

import argparse
import ctypes
import gc
import json
import multiprocessing
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from time import perf_counter
from typing import Any, NamedTuple

import torch
from rich import box
from rich.console import Console
from rich.table import Table

import strategies
from fedlora import profile, settings
from fedlora.profile import SERVER, Profile
from fedlora.runs import Row, RunDir
from fedlora.tensors import nbytes
from simulations.benchmarks.everybody import Everybody
from simulations.benchmarks.memory import GLIBC, environment, status
from simulations.benchmarks.standins import MODELS, PARTS, Served, StandIns, shaped

RANK = 16
ROUNDS = 3
CAP = {"truncate": 32, "max_rank": 128}
METHODS: Mapping[str, dict[str, Any]] = {
    "fedit": {"name": "fedit"},
    "ffa": {"name": "ffa"},
    "fedsa": {"name": "fedsa"},
    "fedsb": {"name": "fedsb"},
    "fslora": {"name": "fslora"},
    "fedex, capped": {"name": "fedex", **CAP},
    "fedex": {"name": "fedex"},
}
MOST = 3.0  # updates above the states
SMALL = 10e6  # bytes of an update, as Fed-SB's R, which other things hide
NOTES = [
    "Update: the largest client's, in fp32. Peak: of the resident set in any round, less what the "
    "process held before there was a state. Above: less the state before the round and the one "
    "after it, which are both there until the new one is whole; in it are the message that is "
    "being read, updates that are being folded, what is decomposed, and orders as bytes.",
    f"capped: truncate = {CAP['truncate']}, max_rank = {CAP['max_rank']}. Seconds are a round's, "
    "the first left out; clients: the time in which stand-ins made their answers. Down: bytes a "
    "client was sent in the last round, both orders together, and in the first.",
    "Disk: the most that the run's folder held: waiting updates, which are fp32 there whatever "
    "the wire, and the last checkpoints.",
]


class Case(NamedTuple):
    """What is measured: a method of METHODS on a model of MODELS, K clients a round, a wire."""

    model: str
    clients: int
    method: str
    wire: str


@dataclass(frozen=True)
class Measured:
    """Of one case, in bytes: the largest client's update in fp32, the state after the last round,
    the peak with and without the states before and after a round; seconds by span of a later
    round; what a client sends, is sent, and was sent in the first; and disk."""

    update: float
    state: float
    peak: float
    above: float
    seconds: dict[str, float]
    up: float
    down: float
    first: float
    disk: float


class Watch(Everybody):
    """The rounds' rows."""

    def __init__(self) -> None:
        self.rows: list[Mapping[str, Any]] = []

    def round(self, row: Mapping[str, Any]) -> None:
        self.rows.append(row)


class Watched(Served):
    """Puts down the peak of each round, in all and above the states before and after it."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.rest, self.before = _settled(), self.state
        self.peaks: list[tuple[float, float]] = []  # of each round: in all, and above its states

    def _commit(self, number: int, rows: list[Row], aside: Path) -> None:
        super()._commit(number, rows, aside)
        peak = status("VmHWM") - self.rest
        both = {id(t): t for t in (*self.before.values(), *self.state.values())}
        held = sum(t.numel() * t.element_size() for t in both.values())
        self.peaks.append((peak, peak - held))
        self.before = self.state
        with profile.span("load"):  # which no round has otherwise
            _settled()


def cases(quick: bool, everything: bool) -> list[Case]:
    """FedEx without a cap at few clients alone: its state grows by K − 1 updates a round."""
    if quick:
        return [Case("tiny", 3, method, wire) for method in METHODS for wire in ("fp32", "bf16")]
    capped = [method for method in METHODS if method != "fedex"]
    found = [
        Case("Llama-3.2-1B", clients, method, wire)
        for clients in (10, 50)
        for method in (METHODS if clients == 10 else capped)
        for wire in ("fp32", "bf16")
    ]
    found += [Case("Llama-3-8B", 10, method, "bf16") for method in capped]
    if everything:
        found += [Case("Llama-3-8B", 10, method, "fp32") for method in capped]
        found += [Case("Llama-3-8B", 50, m, w) for m in capped for w in ("fp32", "bf16")]
        found += [Case("Llama-3-8B", 10, "fedex", "bf16")]
    return found


def measured(case: Case, rounds: int = ROUNDS) -> Measured:
    """In this process, which a tiny run of the same method warms up, so that libraries' own memory
    is there before."""
    torch.set_num_threads(1)
    _served(case._replace(model="tiny", clients=3), 2)
    return _served(case, rounds)


def _served(case: Case, rounds: int) -> Measured:
    shapes, watch, found = MODELS[case.model].shapes(), Watch(), Profile()
    with tempfile.TemporaryDirectory() as folder, profile.recording(found):
        about = {"name": "run", "dir": folder, "rounds": rounds, "wire": case.wire}
        tree = {
            "run": {**about, "clients_per_round": case.clients},
            "data": {"clients": case.clients},
            "adapter": {"rank": RANK},
            "strategy": METHODS[case.method],
        }
        config, strategy = settings.resolve(tree, strategies.load)
        run = RunDir.create(config)
        grid = StandIns(config, strategy, shapes, run.path)
        server = Watched(grid, config, strategy, shapes, run, watch)
        server.serve()
    found.end()
    first, last = watch.rows[1], watch.rows[-1]
    spans = [found.rounds[SERVER][str(number)] for number in range(2, rounds + 1)]
    names = {name for span in spans for name in span} - {"load"}
    seconds = {name: mean(span.get(name, 0.0) for span in spans) for name in names}
    parts = strategy.shared & PARTS[strategy.adapter]
    ranks = [member.rank for member in server.roster.members.values()]
    numbers = [sum(m * n for m, n in shaped(shapes, parts, k).values()) for k in ranks]
    return Measured(
        update=4 * max(numbers),
        state=nbytes(server.state),
        peak=max(peak for peak, _ in server.peaks[1:]),
        above=max(above for _, above in server.peaks[1:]),
        seconds=seconds,
        up=last["bytes_up"] / case.clients,
        down=last["bytes_down"] / case.clients,
        first=first["bytes_down"] / case.clients,
        disk=grid.disk,
    )


def _settled() -> float:
    """Bytes that this process holds once all that is free was given back; the peak counts anew."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def apart(chosen: Sequence[Case]) -> dict[Case, Measured]:
    """Each in a process of its own."""
    spawn, found = multiprocessing.get_context("spawn"), {}
    with (
        environment(GLIBC),
        ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as pool,
    ):
        for case in chosen:
            found[case] = pool.submit(measured, case).result()
            print(*case, f"{found[case].above / 1e6:.0f} MB above the states", flush=True)
    return found


def table(found: Mapping[Case, Measured]) -> dict[str, Any]:
    """Rows of text, for the terminal and for JSON."""
    spans = {"encode": "encode", "aggregate": "aggregate", "checkpoint": "checkpoint"}
    columns = ["model", "clients", "method", "wire", "update MB", "state MB", "peak MB", "above"]
    columns += ["round s", *spans.values(), "clients", "up MB", "down MB", "at first", "disk GB"]
    rows = []
    for case, m in found.items():
        total = sum(m.seconds.values())
        rows.append(
            [
                *map(str, case[:2]),
                *case[2:],
                *(f"{x / 1e6:.1f}" for x in (m.update, m.state, m.peak)),
                f"{m.above / m.update:.2f}×",
                f"{total:.1f}",
                *(f"{m.seconds.get(span, 0.0):.1f}" for span in (*spans, "wait")),
                *(f"{x / 1e6:.1f}" for x in (m.up, m.down, m.first)),
                f"{m.disk / 1e9:.2f}",
            ]
        )
    title = f"A round at the server, all linears, r = {RANK}"
    return {"title": title, "columns": columns, "rows": rows}


def targets(found: Mapping[Case, Measured]) -> list[dict[str, Any]]:
    """The most memory above the states, by model and number of clients, of methods whose updates
    are more than what messages' heads, digests and the allocator take."""
    told = []
    for model, clients in dict.fromkeys(case[:2] for case in found):
        own = [m for case, m in found.items() if case[:2] == (model, clients)]
        most = max((m.above / m.update for m in own if m.update > SMALL), default=0.0)
        what = f"updates above the state, {model}, {clients} clients, the worst method"
        met = most <= MOST
        told.append({"what": what, "target": f"≤ {MOST:g}", "measured": f"{most:.2f}", "met": met})
    return told


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, and write the JSON file if asked to."""
    parser = argparse.ArgumentParser(description="The server of a large model's federation.")
    parser.add_argument("--quick", action="store_true", help="a tiny model, three clients")
    parser.add_argument("--all", action="store_true", help="8B × 50 too; 10 GB of disk")
    parser.add_argument("--json", type=Path, help="where to write the results")
    given = parser.parse_args(arguments)
    started = perf_counter()
    found = apart(cases(given.quick, given.all))
    shown = table(found)
    told = {
        "benchmark": "large",
        "title": "The server of a large model's federation",
        "seconds": perf_counter() - started,
        "tables": [shown],
        "targets": targets(found),
        "notes": NOTES,
        "raw": [{**case._asdict(), **asdict(m)} for case, m in found.items()],
    }
    printed = Table(title=shown["title"], box=box.SIMPLE_HEAD)
    for i, header in enumerate(shown["columns"]):
        printed.add_column(header, justify="left" if i in (0, 2, 3) else "right")
    for row in shown["rows"]:
        printed.add_row(*row)
    Console(width=160).print(printed)
    if given.json:
        given.json.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
