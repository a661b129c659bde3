"""Exact methods in factors against dense ones: FedEx's residual, its truncation, FlexLoRA's SVD.

    python -m simulations.benchmarks.exact --json exact.json

Ten clients of rank 16 on layers of an 8B Llama's sizes; on the CPU, and on a GPU where there is
one; four minutes, most of them dense decompositions and the float64 truth. Times are taken by
turns, on the CPU the process's own; a dense SVD runs once, in the process that tells its memory,
which is new for every layer.
"""

import argparse
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from simulations.benchmarks.factored import (
    DENSE,
    FACTORS,
    MEAN,
    RESIDUAL,
    WORKS,
    Found,
    Layer,
    Uploads,
    Work,
    best,
    block,
    draw,
    errors,
    exact,
)
from simulations.benchmarks.timing import Spread, alternated, clock, ratio_of_medians, spread
from simulations.benchmarks.trials import Trial, in_a_process, threads

LAYERS = [Layer(4096, 4096), Layer(14336, 4096)]
QUICK = [Layer(48, 48, 3, 4, 6), Layer(80, 64, 3, 4, 6)]
TURNS, RUNS = 3, 10  # of every way; in factors, a turn
FASTER, LESS, ERROR = 50, 10, 1e-6  # to reach: times, times, relative
COLUMNS = ["work", "way", "runs", "ms", "faster", "MB", "less", "error"]
NOTES = [
    "Ten clients, uneven weights, r = 16, α = 32, as after a first round: B_i all the client's own,"
    " A_i near a common start. Truncation to r' = 32. Everybody starts from fp32 factors and plain"
    " means of them; dense ways form the dense matrix first, and that is in their time.",
    "dense: client by client, as published code does it; one product: all stacked first, the least"
    " that a dense result takes. Dense SVD: torch.linalg.svd in fp32.",
    "ms: medians, the process's time (what passed for two threads); MB: peak above the loaded"
    " process, after a small layer; error: ‖found − float64‖ / ‖float64‖, of what the row computes."
    " Only a residual is timed on two threads.",
]


@dataclass(frozen=True)
class Result:
    """A way to do a work. Ratios are the dense way's to its own: of median times, of memory."""

    device: str
    layer: str
    work: str
    way: str
    threads: int
    runs: int
    milliseconds: Spread
    faster: float
    megabytes: float | None = None
    less: float | None = None
    error: float | None = None
    values_error: float | None = None  # the worst of the kept singular values, relative


def measure(layers: Sequence[Layer], device: str) -> list[Result]:
    """Every way of every work on every layer; the first one's residual on two threads too."""
    found = []
    for layer in layers:
        u, tried = draw(layer, device), in_a_process(layer, device)
        for work in WORKS.values():
            mine = {way: tried[work.name, way] for way in work.ways}
            seconds = _times(work, layer, u, clock(device))
            seconds |= {k: [mine[k].seconds] for k in work.ways if k not in seconds}
            wrong = _errors(work, layer, u, mine)
            found += [_result(device, layer, work, k, seconds, mine, wrong) for k in work.ways]
        if device == "cpu" and layer == layers[0]:
            with threads(2):
                seconds = _times(RESIDUAL, layer, u, perf_counter)
            found += [_result(device, layer, RESIDUAL, k, seconds, threads=2) for k in seconds]
    return found


def _times(
    work: Work, layer: Layer, u: Uploads, now: Callable[[], float]
) -> dict[str, list[float]]:
    """Seconds a run by way, of those that take less than many seconds."""
    ways = {k: w for k, w in work.ways.items() if not (work.decomposes and k == DENSE)}

    def runs(key: str, _: int) -> int:
        count = RUNS if key == FACTORS else 1
        for _ in range(count):
            ways[key](layer, u)
        return count

    taken = alternated([partial(runs, k) for k in ways], range(TURNS), 0, now)
    return dict(zip(ways, taken, strict=True))


def _errors(
    work: Work, layer: Layer, u: Uploads, tried: dict[str, Trial]
) -> dict[str, tuple[float, float | None]]:
    """Relative errors of each way's result and, where it decomposes, of its singular values.
    All cores form the truth."""
    if not work.decomposes:
        results: list[Found] = [way(layer, u) for way in work.ways.values()]
        lost, whole = errors(results, partial(exact, work, u), layer)
        return {k: (e / whole, None) for k, e in zip(work.ways, lost, strict=True)}
    with threads(os.cpu_count() or 1):
        truth, values = best(work, layer, u)
    factors = [
        (torch.from_numpy(US).to(values.device), torch.from_numpy(V).to(values.device))
        for US, V in (trial.found for trial in tried.values() if trial.found)
    ]
    lost, whole = errors(factors, partial(block, truth), layer)
    off = [float((US.double().norm(dim=0) / values - 1).abs().max()) for US, _ in factors]
    return {k: (e / whole, v) for k, e, v in zip(work.ways, lost, off, strict=True)}


def later_round(layer: Layer) -> str:
    """What fp32 leaves of the residual once factors have much in common, in words."""
    u = draw(layer, "cpu", common=1.0)
    ways = {k: RESIDUAL.ways[k](layer, u) for k in (FACTORS, DENSE)}
    lost, itself = errors(list(ways.values()), partial(exact, RESIDUAL, u), layer)
    _, mean = errors([], partial(exact, MEAN, u), layer)
    shown = [f"{k} {e / mean:.1e} ({e / itself:.1e})" for k, e in zip(ways, lost, strict=True)]
    return (
        "In later rounds, clients' factors a tenth apart, the residual is small beside the mean"
        " that it completes, and the means' own rounding shows. Error relative to the mean, and to"
        f" the residual in brackets, {layer.m}×{layer.n}: {'; '.join(shown)}."
    )


def _result(
    device: str,
    layer: Layer,
    work: Work,
    way: str,
    seconds: dict[str, list[float]],
    tried: dict[str, Trial] | None = None,
    wrong: dict[str, tuple[float, float | None]] | None = None,
    threads: int = 1,
) -> Result:
    runs = len(seconds[way]) * (RUNS if way == FACTORS else 1)
    faster = ratio_of_medians(seconds[DENSE], seconds[way])
    times = spread([1e3 * t for t in seconds[way]])
    shape = f"{layer.m}×{layer.n}"
    result = (device, shape, work.name, way, threads, runs, times, faster)
    if tried is None or wrong is None:
        return Result(*result)
    ours, dense = tried[way].megabytes, tried[DENSE].megabytes
    less = dense / ours if ours and dense else None
    return Result(*result, ours, less, *wrong[way])


def targets(results: Sequence[Result]) -> list[dict[str, Any]]:
    """What a work in factors reached on its worst layer, on one thread, against what it is to."""
    found = []
    ours = [r for r in results if (r.way, r.threads) == (FACTORS, 1)]
    for device, work in dict.fromkeys((r.device, r.work) for r in ours):
        mine, what = [r for r in ours if (r.device, r.work) == (device, work)], f"{work}, {device}"
        faster = min(r.faster for r in mine)
        found.append(_target(f"{what}: time", f"≥ {FASTER}×", f"{faster:.0f}×", faster >= FASTER))
        if told := [r.less for r in mine if r.less is not None]:
            less = min(told)
            found.append(_target(f"{what}: memory", f"≥ {LESS}×", f"{less:.1f}×", less >= LESS))
        wrong = {
            "error": [r.error for r in mine if r.error is not None],
            "singular values": [r.values_error for r in mine if r.values_error is not None],
        }
        for name, e in wrong.items():
            if e:
                most, limit = max(e), f"≤ {ERROR:.0e}"
                found.append(_target(f"{what}: {name}", limit, f"{most:.1e}", most <= ERROR))
    return found


def _target(what: str, target: str, measured: str, met: bool) -> dict[str, Any]:
    return {"what": what, "target": target, "measured": measured, "met": met}


def _digits(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _tables(results: Sequence[Result]) -> list[dict[str, Any]]:
    """One for every layer and device."""
    found = []
    for device, layer in dict.fromkeys((r.device, r.layer) for r in results):
        lines = [_row(r) for r in results if (r.device, r.layer) == (device, layer)]
        title = f"{layer} on {device}: in factors against dense"
        found.append({"title": title, "columns": COLUMNS, "rows": lines})
    return found


def _row(r: Result) -> list[str]:
    work = r.work if r.threads == 1 else f"{r.work}, {r.threads} threads"
    numbers = map(_digits, (r.milliseconds.median, r.faster, r.megabytes, r.less))
    return [work, r.way, str(r.runs), *numbers, "–" if r.error is None else f"{r.error:.1e}"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the tables, and write the JSON file if asked to."""
    parser = argparse.ArgumentParser(description="Exact aggregation in factors against dense.")
    parser.add_argument("--quick", action="store_true", help="tiny layers: a check, no result")
    parser.add_argument("--json", type=Path, help="where to write the results")
    given = parser.parse_args(arguments)
    layers, start, console = QUICK if given.quick else LAYERS, perf_counter(), Console()
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    with threads(1):
        results = [r for device in devices for r in measure(layers, device)]
        notes = [*NOTES, later_round(layers[0])]
    found = {
        "benchmark": "exact",
        "title": "Exact aggregation in factors against dense matrices",
        "seconds": perf_counter() - start,
        "tables": _tables(results),
        "targets": targets(results),
        "notes": notes,
        "raw": [asdict(r) | {"milliseconds": r.milliseconds._asdict()} for r in results],
    }
    show(console, found)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")


def show(console: Console, found: dict[str, Any]) -> None:
    """The tables, then what was to be reached, then the notes."""
    for one in found["tables"]:
        shown = Table(title=one["title"], box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for i, header in enumerate(one["columns"]):
            shown.add_column(header, justify="left" if i < 2 else "right", no_wrap=True)
        for row in one["rows"]:
            shown.add_row(*row, end_section=row[1] == DENSE)
        console.print(shown)
    for t in found["targets"]:
        state = "met" if t["met"] else "missed"
        console.print(f"{state}: {t['what']} {t['measured']} ({t['target']})", highlight=False)
    for note in found["notes"]:
        console.print(note, highlight=False)


if __name__ == "__main__":
    main()
