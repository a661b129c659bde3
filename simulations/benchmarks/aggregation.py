"""How fast a server averages large updates, and what memory that takes.

    python -m simulations.benchmarks.aggregation --json aggregation.json

Twenty updates of Llama-3.2-3B with LoRA of rank 32 on all linear layers, 195 MB each in fp32, on
one thread and on two; about three minutes and 9 GB of memory.
"""

import argparse
import json
import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from fedlora import wire
from simulations.benchmarks import updates
from simulations.benchmarks.timing import Spread, alternated, spread
from simulations.benchmarks.updates import Load, Shapes

FEDLORA, MANY, SCREENED = "fedlora", "fedlora, more", "fedlora, screened"
NUMPY, FLOWER, ADD = "numpy", "Flower's FedAvg", "add"
WARM_UP = 1
FASTER = {1: 4, 2: 8}  # to reach by threads: times Flower's rate
SHARE, MOST = 0.5, 3  # to reach: of the addition's rate; updates of memory
RATES = ["threads", "who", "updates", "ms an update", "GB/s", "of Flower's rate", "of add's"]
MEMORY = ["who", "updates", "order", "most memory, in updates"]
NOTES = [
    "Everybody starts from replies in memory as Flower's transport leaves them, fedlora and numpy"
    " from arrays' raw bytes, Flower's own strategy from numpy's format; the values are the same."
    " Fedlora decodes and folds in client order; Flower's strategy is called with all its replies;"
    " numpy sums p_i x_i over views of the bytes. Screened: as in a run, each update is first"
    " looked through for a value that is not finite, which neither of the others does.",
    "add: torch's in-place addition of decoded updates to a sum that is there; it reads an update,"
    " and reads and writes the sum. To look at an update before it is used is one more reading.",
    "Medians (quartiles) over turns; ratios are taken turn by turn. One thread: the process's time;"
    " two: what passed. Flower and numpy use one thread in either case. The longer list holds the"
    " same replies several times over.",
    "Memory is the peak above the loaded process, which has the server's state, each in a process"
    " of its own; a reply is read when its turn comes, Flower's all before its strategy is called.",
]


@dataclass(frozen=True)
class Rate:
    """Somebody's time an update; ratios of rates, to Flower's and to the addition's."""

    threads: int
    who: str
    updates: int
    milliseconds: Spread
    rate: float  # GB/s of updates
    of_flower: Spread
    of_add: Spread


@dataclass(frozen=True)
class Peak:
    who: str
    updates: int
    order: str
    taken: float  # updates


def rates(load: Load, times: int, turns: int, threads: int) -> list[Rate]:
    """Everybody's rate.

    Args:
        times: how often the longer list of fedlora's goes over the replies.
        turns: how often each averages them all.
    """
    decoded = [wire.unpack(content).tensors for content in load.ours]
    sums = {k: torch.zeros_like(t) for k, t in load.state.items()}
    count, nbytes = len(load.ours), sum(4 * t.numel() for t in load.state.values())
    work: dict[str, tuple[int, Callable[[], object]]] = {
        FEDLORA: (count, partial(updates.fedlora, load, 1, False)),
        MANY: (times * count, partial(updates.fedlora, load, times, False)),
        SCREENED: (count, partial(updates.fedlora, load)),
        NUMPY: (count, partial(updates.plain_numpy, load)),
        FLOWER: (count, partial(updates.flower, load)),
        ADD: (count, partial(updates.add, decoded, sums)),
    }

    def run(name: str, _: int) -> int:
        rows, average = work[name]
        average()
        return rows

    contenders = [partial(run, name) for name in work]
    now = process_time if threads == 1 else perf_counter
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        taken = alternated(contenders, range(WARM_UP + turns), WARM_UP, now)
    finally:
        torch.set_num_threads(before)
    seconds = dict(zip(work, taken, strict=True))
    return [
        Rate(
            threads,
            name,
            work[name][0],
            milliseconds := spread([1e3 * t for t in ours]),
            nbytes / milliseconds.median / 1e6,
            spread([f / t for f, t in zip(seconds[FLOWER], ours, strict=True)]),
            spread([a / t for a, t in zip(seconds[ADD], ours, strict=True)]),
        )
        for name, ours in seconds.items()
    ]


def peaks(sizes: Shapes, count: int, times: int, folder: Path) -> list[Peak]:
    """What averaging takes, however many updates there are and in whatever order they come."""
    found = []
    for who, name, order, told in [
        (FEDLORA, "fedlora", updates.in_turn(count), "in turn"),
        (FEDLORA, "fedlora", updates.in_turn(times * count), "in turn"),
        (FEDLORA, "fedlora", updates.swapped(count), "pairs swapped"),
        (FLOWER, "flower", updates.in_turn(count), "in turn"),
    ]:
        taken = updates.peak(name, sizes, order, folder)
        if taken is not None:
            found.append(Peak(who, len(order), told, taken))
    return found


def targets(found: Sequence[Rate], taken: Sequence[Peak]) -> list[dict[str, Any]]:
    """What is to be reached, and what was."""
    told = []
    for rate in found:
        if rate.who not in (FEDLORA, SCREENED):
            continue
        on = f"{rate.threads} thread{'s' * (rate.threads > 1)}" + rate.who.removeprefix(FEDLORA)
        times, share, wanted = rate.of_flower.median, rate.of_add.median, FASTER[rate.threads]
        told += [
            _target(f"of Flower's rate, {on}", times >= wanted, f"≥ {wanted}×", f"{times:.1f}×"),
            _target(f"of add's rate, {on}", share >= SHARE, f"≥ {SHARE:.0%}", f"{share:.0%}"),
        ]
    if ours := [p.taken for p in taken if p.who == FEDLORA]:
        most = max(ours)
        told.append(
            _target("most memory, in updates", most <= MOST, f"≤ {MOST}", f"{most:.2f}"),
        )
    return told


def _target(what: str, met: bool, target: str, measured: str) -> dict[str, Any]:
    return {"what": what, "target": target, "measured": measured, "met": met}


def tables(found: Sequence[Rate], taken: Sequence[Peak]) -> list[dict[str, Any]]:
    """Rows of text, for the terminal and for JSON."""
    speed = [
        [
            str(r.threads),
            r.who,
            str(r.updates),
            _bracketed(r.milliseconds, 1),
            f"{r.rate:.2f}",
            _bracketed(r.of_flower, 2),
            f"{r.of_add.median:.0%}",
        ]
        for r in found
    ]
    held = [[p.who, str(p.updates), p.order, f"{p.taken:.2f}"] for p in taken]
    return [
        {"title": "Averaging updates", "columns": RATES, "rows": speed},
        {"title": "Memory of averaging", "columns": MEMORY, "rows": held},
    ]


def _bracketed(s: Spread, digits: int) -> str:
    return f"{s.median:.{digits}f} ({s.low:.{digits}f}–{s.high:.{digits}f})"


def _shown(table: dict[str, Any]) -> Table:
    shown = Table(title=table["title"], box=box.SIMPLE_HEAD)
    for header in table["columns"]:
        words = header in ("who", "order")
        shown.add_column(header, justify="left" if words else "right")
    for row in table["rows"]:
        shown.add_row(*row)
    return shown


def report(found: Sequence[Rate], taken: Sequence[Peak], seconds: float) -> dict[str, Any]:
    """All that was measured, for JSON."""
    raw = [
        asdict(r) | {k: getattr(r, k)._asdict() for k in ("milliseconds", "of_flower", "of_add")}
        for r in found
    ]
    return {
        "benchmark": "aggregation",
        "title": "Streaming aggregation against Flower's FedAvg and numpy",
        "seconds": seconds,
        "tables": tables(found, taken),
        "targets": targets(found, taken),
        "notes": NOTES,
        "raw": {"rates": raw, "memory": [asdict(p) for p in taken]},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the tables, and write the JSON file if asked to."""
    parser = argparse.ArgumentParser(description="Rate and memory of averaging large updates.")
    parser.add_argument("--quick", action="store_true", help="four updates of rank 2, two turns")
    parser.add_argument("--json", type=Path, help="where to write the results")
    given = parser.parse_args(arguments)
    rank, count, turns = (2, 4, 2) if given.quick else (32, 20, 3)
    logging.getLogger("flwr").setLevel(logging.WARNING)
    torch.set_num_threads(1)
    started, sizes = perf_counter(), updates.shapes(rank)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with tempfile.TemporaryDirectory() as folder:
        taken = peaks(sizes, count, 5, Path(folder))
        load = updates.load(sizes, count, Path(folder))
        found = [r for n in (1, 2) if n <= (cores or 1) for r in rates(load, 5, turns, n)]
    told = report(found, taken, perf_counter() - started)
    for table in told["tables"]:
        Console().print(_shown(table))
    for target in told["targets"]:
        Console().print(f"{target['what']}: {target['measured']}, to reach {target['target']}")
    if given.json:
        given.json.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
