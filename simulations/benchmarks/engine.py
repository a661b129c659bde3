"""How fast clients are trained: stacked against plain loops in real tokens a second, a whole run
against a Flower app on its Ray engine, two workers against one.

    python -m simulations.benchmarks.engine --json engine.json

MiniLM with LoRA of rank 8 and a trained head, rows of the bundled data; about eight minutes on two
cores. Passes run on one thread, and on a GPU too where there is one; whole runs on two cores. Needs
the extra `ray`. `--compile` adds the plain step by torch.compile: minutes more.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch

from fedlora.config import Adapter, Config
from simulations.benchmarks import throughput, whole_runs
from simulations.benchmarks.tables import show, target
from simulations.benchmarks.throughput import LIMIT, PLAIN, STACKED, Compiled, Result, Setting
from simulations.benchmarks.whole_runs import FEDLORA, FLOWERTUNE, Load, Run

CONFIG = Config(adapter=Adapter(kind="lora", rank=8))
SETTINGS = [Setting(8, 1), Setting(8, 4), Setting(8, 16), Setting(32, 1)]
NEAR_LIMIT = SETTINGS[1:]  # that are to come near the limit: they have rows enough a step
COMPILED = [1, 16]  # rows of a batch
ROWS, REPEATS = 128, 3  # of a piece; pieces
RUNS, WORKER_RUNS = 2, 2  # of each contender
RAY_LOAD, WORKER_LOAD = Load(), Load(clients=8)
SLOWER, SHARE, FASTER, CHEAPER, WORKERS = 1.15, 0.85, 3.0, 20.0, 1.7  # to reach
CLOCKS = 1e-3  # seconds: what two clocks may differ by

NOTES = [
    "Tokens are real ones: padding is work that counts for nobody. Every contender trains on all"
    " rows of the same pieces once: forward, backward, clipping and AdamW. Making the optimizer is"
    " in its time, and so is laying stacked clients' adapters together and taking them apart."
    " Medians, quartiles in brackets; the process's own time on one thread.",
    f"The limit is the plain loop in batches of {LIMIT} of the same rows, at random and padded to"
    " the longest. fedlora's own plain loop cuts such batches into pieces of like length and is the"
    " harder yardstick; shares of both are shown.",
    "The Flower app makes model and adapter anew for each message, as the FlowerTune template does."
    " It does less than the template besides: it tokenises only the rows of its batches, trains"
    " without Transformers' Trainer, and is started by run_simulation, with no SuperLink.",
    "In whole runs nobody evaluates; fedlora writes its checkpoints. A round lasts from the end of"
    " the one before to its own; the first is not counted. Beyond its steps: less the seconds that"
    " the busiest worker (fedlora) or actor (Ray) spent in its clients' loops of training steps,"
    " which for fedlora include laying stacked adapters together.",
    "Whole runs are on the CPU, also where there is a GPU.",
]


def tokens_table(device: str, results: Sequence[Result]) -> dict[str, Any]:
    columns = ["pass", "clients", "batch", "real tokens/s", "of the limit", "of fedlora's own"]
    rows = [
        [
            r.contender,
            str(r.clients or "–"),
            str(r.batch),
            f"{r.speed.median:,.0f} ({r.speed.low:,.0f}–{r.speed.high:,.0f})",
            *(f"{s.median:.0%} ({s.low:.0%}–{s.high:.0%})" for s in (r.share, r.own_share)),
        ]
        for r in results
    ]
    return {"title": f"Training passes on {device}", "columns": columns, "rows": rows}


def compiled_table(results: Sequence[Compiled]) -> dict[str, Any]:
    columns = ["device", "batch", "eager s", "compiled s", "compiling s", "pays after s"]
    rows = [
        [
            r.device,
            str(r.batch),
            *(f"{s:.2f}" for s in (r.eager, r.compiled, r.compiling)),
            "never" if r.pays_after == float("inf") else f"{r.pays_after:,.0f}",
        ]
        for r in results
    ]
    return {"title": "The plain step by torch.compile", "columns": columns, "rows": rows}


def ray_table(found: dict[str, list[Run]]) -> dict[str, Any]:
    """Whole seconds, and of rounds the medians."""
    columns = ["contender", "whole run s", "round s", "its steps s", "beyond them ms"]
    rows = [
        [
            name,
            f"{median(r.seconds for r in runs):.1f}",
            f"{_of_rounds(runs, 'wall'):.2f}",
            f"{_of_rounds(runs, 'steps'):.2f}",
            f"{1e3 * _of_rounds(runs, 'beyond'):.0f}",
        ]
        for name, runs in found.items()
    ]
    title = _titled("A whole run on two cores", RAY_LOAD)
    return {"title": title, "columns": columns, "rows": rows}


def workers_table(found: dict[int, list[Run]]) -> dict[str, Any]:
    rows = [
        [str(workers), f"{_of_rounds(runs, 'wall'):.2f}", f"{_of_rounds(runs, 'steps'):.2f}"]
        for workers, runs in found.items()
    ]
    title = _titled("Rounds by workers", WORKER_LOAD)
    return {"title": title, "columns": ["workers", "round s", "its steps s"], "rows": rows}


def _of_rounds(runs: Sequence[Run], what: str) -> float:
    return median(getattr(round, what) for run in runs for round in run.rounds)


def _titled(what: str, load: Load) -> str:
    done = (
        f"{load.clients} clients × {load.rounds} rounds × {load.steps} steps of {load.batch} rows"
    )
    return f"{what}: {done}"


def pass_targets(results: Sequence[Result]) -> list[dict[str, Any]]:
    """What stacked passes reached."""
    by = {(r.contender, r.batch, r.clients): r for r in results}
    found = []
    for s in SETTINGS:
        ours, plain = by[STACKED, s.batch, s.clients], by[PLAIN, s.rows, 0]
        name = f"{s.clients} stacked clients × {s.batch} ({ours.device})"
        slower = plain.speed.median / ours.speed.median
        what = f"{name}: time over a plain pass over {s.rows} of the same rows"
        found.append(target(what, f"≤ {SLOWER}×", f"{slower:.2f}×", slower <= SLOWER))
        yardsticks = {"the limit": ours.share, "fedlora's own loop's limit": ours.own_share}
        for yardstick, share in yardsticks.items() if s in NEAR_LIMIT else ():
            met = share.median >= SHARE
            found.append(
                target(f"{name}: of {yardstick}", f"≥ {SHARE:.0%}", f"{share.median:.1%}", met)
            )
    return found


def run_targets(ray: dict[str, list[Run]], workers: dict[int, list[Run]]) -> list[dict[str, Any]]:
    """What whole runs reached."""
    whole = {name: median(r.seconds for r in runs) for name, runs in ray.items()}
    beyond = {name: _of_rounds(runs, "beyond") for name, runs in ray.items()}
    faster = whole[FLOWERTUNE] / whole[FEDLORA]
    cheaper = beyond[FLOWERTUNE] / max(beyond[FEDLORA], CLOCKS)
    two = _of_rounds(workers[1], "wall") / _of_rounds(workers[2], "wall")
    return [
        target("whole run with start-up: faster than the Flower app", *_times(faster, FASTER)),
        target("a round beyond its steps: less than the Flower app's", *_times(cheaper, CHEAPER)),
        target("rounds with two workers: faster than with one", *_times(two, WORKERS)),
    ]


def _times(measured: float, least: float) -> tuple[str, str, bool]:
    return f"≥ {least:g}×", f"{measured:.2f}×", measured >= least


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the tables, and write the JSON file if asked to."""
    parser = argparse.ArgumentParser(description="Speed of training many clients.")
    parser.add_argument("--json", type=Path, help="where to write the results")
    parser.add_argument("--quick", action="store_true", help="a piece and a run each: a check")
    parser.add_argument("--compile", action="store_true", help="torch.compile too")
    given = parser.parse_args(arguments)
    start = perf_counter()
    torch.set_num_threads(1)
    tables, targets = [], []
    raw: dict[str, Any] = {}
    repeats = 1 if given.quick else REPEATS
    for device in ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]:
        results = throughput.measure(CONFIG, device, SETTINGS, ROWS, repeats)
        tables.append(tokens_table(device, results))
        show(tables[-1])
        targets += pass_targets(results)
        raw[f"passes on {device}"] = [asdict(r) for r in results]
        if given.compile:
            compiled = throughput.compare_compiled(CONFIG, device, COMPILED, ROWS, repeats)
            tables.append(compiled_table(compiled))
            show(tables[-1])
    with tempfile.TemporaryDirectory(prefix="fl-") as folder:
        ray = whole_runs.against_ray(RAY_LOAD, 1 if given.quick else RUNS, Path(folder))
        tables.append(ray_table(ray))
        show(tables[-1])
        count = 1 if given.quick else WORKER_RUNS
        workers = whole_runs.by_workers(WORKER_LOAD, count, Path(folder))
        tables.append(workers_table(workers))
        show(tables[-1])
    targets += run_targets(ray, workers)
    raw |= {"ray": ray, "workers": workers}
    show(
        {
            "title": "Targets",
            "columns": ["what", "target", "measured", "met"],
            "rows": [[t["what"], t["target"], t["measured"], str(t["met"])] for t in targets],
        }
    )
    told = {
        "benchmark": "engine",
        "title": "Training many clients",
        "seconds": perf_counter() - start,
        "tables": tables,
        "targets": targets,
        "notes": NOTES,
        "raw": raw,
    }
    if given.json:
        given.json.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
