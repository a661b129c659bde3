"""What privacy costs a training step: time and memory of private steps against plain ones.

    python -m simulations.benchmarks.private_step --batches 8,16,32 --repeats 8 --json cost.json

MiniLM with LoRA of rank 8 and a trained head, rows of the bundled data, one thread; on the CPU,
and on a GPU where there is one; three minutes on one core. Other work on the machine widens the
quartiles and hardly moves the ratios, which are taken batch by batch.
"""

import argparse
import json
import os
import platform
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from fedlora.config import Adapter, Config, Train
from fedlora.config.privacy import Privacy
from fedlora.privacy import entropy
from simulations.benchmarks.contenders import CONTENDERS, Workload, plain_round, private_round
from simulations.benchmarks.memory import peaks
from simulations.benchmarks.timing import Spread, alternated, clock, ratio_of_medians, spread

CONFIG = Config(
    adapter=Adapter(kind="lora", rank=8),
    train=Train(batch_size=16, steps=10),  # of the whole rounds
    privacy=Privacy(noise_multiplier=1.0),
)
WARM_UP = 1  # batches, and rounds, that are not counted
ROUND = "round"  # a client's whole private round
NODE = "node's round"  # the same in the passes of an owner's node
COORDINATES = (74_498, 1_000_000, 40_000_000)  # the default model's adapter and head; larger ones


@dataclass(frozen=True)
class Result:
    """A contender at a batch size, or a client's whole private round with the default engine.

    Ratios are to plain steps of the same batches; the round's to a plain round, both by row.
    """

    device: str
    batch: int
    contender: str
    milliseconds: Spread  # of `batch` rows
    ratio: Spread  # of neighbours in time
    ratio_of_medians: float
    memory: float | None = None  # MB above the loaded process
    memory_over_plain: float | None = None  # MB


@dataclass(frozen=True)
class Noise:
    """What the noise of one step takes; it is drawn on the CPU, whatever the device."""

    coordinates: int
    threads: int
    milliseconds: Spread  # of the process's time


def measure(config: Config, device: str, sizes: Sequence[int], repeats: int) -> list[Result]:
    """Every contender at every batch size, and whole rounds at the configuration's.

    Args:
        repeats: batches timed of each size; rounds are half as many.
    """
    load, memory = Workload(config, device), peaks(config, device, sizes)
    found = []
    for rows in sizes:
        seconds = _steps(load, rows, repeats)
        for name, times in seconds.items():
            held, base = memory.get((name, rows)), memory.get(("plain", rows))
            over = None if held is None or base is None else held - base
            found.append(_result(device, rows, name, times, seconds["plain"], held, over))
    plain, private, node = _rounds(load, max(1, repeats // 2))
    batch = config.train.batch_size
    return [
        *found,
        _result(device, batch, ROUND, private, plain),
        _result(device, batch, NODE, node, plain),
    ]


def _steps(load: Workload, rows: int, repeats: int) -> dict[str, list[float]]:
    """Seconds a row of each batch, by contender."""
    batches = load.batches(rows, WARM_UP + repeats)
    with ExitStack() as stack:
        steps = [
            stack.enter_context(make(load, load.adapter(), rows)) for make in CONTENDERS.values()
        ]
        seconds = alternated(steps, batches, WARM_UP, clock(load.device))
    return dict(zip(CONTENDERS, seconds, strict=True))


def _rounds(load: Workload, repeats: int) -> list[list[float]]:
    """Seconds a row of each round: plain ones, private ones, private ones as on an owner's node.
    Those draw batches of uneven size."""
    steady = partial(private_round, steady=True)
    all = [partial(f, load, load.adapter()) for f in (plain_round, private_round, steady)]
    return alternated(all, range(WARM_UP + repeats), WARM_UP, clock(load.device))


def _result(
    device: str, rows: int, name: str, times: list[float], base: list[float], *memory: float | None
) -> Result:
    milliseconds = spread([1e3 * rows * t for t in times])
    ratios = spread([t / b for t, b in zip(times, base, strict=True)])
    return Result(device, rows, name, milliseconds, ratios, ratio_of_medians(times, base), *memory)


def table(device: str, results: Sequence[Result]) -> Table:
    """A line a contender, sections by batch size; quartiles in brackets."""
    shown = Table(
        title=f"Private steps against plain ones on {device}: medians (quartiles)",
        caption="ms on the CPU: the process's time; ratio: batch by batch; medians:\n"
        "of the two medians; MB: most memory above the loaded process, less plain's",
        box=box.SIMPLE_HEAD,
    )
    shown.add_column("step", no_wrap=True)
    for header in ("rows", "ms", "ratio", "medians", "MB"):
        shown.add_column(header, justify="right", no_wrap=True)
    for i, r in enumerate(results):
        last = results[i + 1 : i + 2] and results[i + 1].contender in ("plain", ROUND, NODE)
        shown.add_row(
            r.contender,
            str(r.batch),
            _bracketed(r.milliseconds, 0 if r.milliseconds.median >= 100 else 1),
            _bracketed(r.ratio, 2),
            f"{r.ratio_of_medians:.2f}",
            "–" if r.memory_over_plain is None else f"{r.memory_over_plain:+.1f}",
            end_section=bool(last),
        )
    return shown


def _bracketed(s: Spread, digits: int) -> str:
    return f"{s.median:.{digits}f} ({s.low:.{digits}f}–{s.high:.{digits}f})"


def report(
    config: Config, repeats: int, results: Sequence[Result], drawn: Sequence[Noise]
) -> dict[str, Any]:
    """The results and what they were measured on and with, for JSON."""
    return {
        "machine": {
            "cpu": _processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "versions": {k: version(k) for k in ("torch", "opacus", "peft", "transformers")},
        "settings": {
            **config.model_dump(include={"model", "adapter", "train", "privacy"}),
            "repeats": repeats,
            "warm_up": WARM_UP,
        },
        "results": [
            asdict(r) | {k: getattr(r, k)._asdict() for k in ("milliseconds", "ratio")}
            for r in results
        ],
        "noise": [asdict(r) | {"milliseconds": r.milliseconds._asdict()} for r in drawn],
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def noise(repeats: int) -> list[Noise]:
    """The draws of one step, of adapters of several sizes, by as many threads as torch has."""
    return [Noise(n, torch.get_num_threads(), spread(_drawn(n, repeats))) for n in COORDINATES]


def _drawn(coordinates: int, repeats: int) -> list[float]:
    """Milliseconds of each draw."""
    now, found = clock("cpu"), []
    for number in range(repeats):
        started = now()
        entropy.normals((coordinates,), entropy.insecure(0), "noise", number)
        found.append(1e3 * (now() - started))
    return found


def noise_table(results: Sequence[Noise]) -> Table:
    shown = Table(title="The noise of one step: medians (quartiles)", box=box.SIMPLE_HEAD)
    for header in ("coordinates", "threads", "ms"):
        shown.add_column(header, justify="right", no_wrap=True)
    for r in results:
        shown.add_row(f"{r.coordinates:,}", str(r.threads), _bracketed(r.milliseconds, 0))
    return shown


def _sizes(text: str) -> list[int]:
    return [int(x) for x in text.split(",")]


def main(arguments: Sequence[str] | None = None, config: Config = CONFIG) -> None:
    """Measure, print the table, and write the JSON file if asked to."""
    parser = argparse.ArgumentParser(description="Time and memory of private training steps.")
    parser.add_argument("--batches", type=_sizes, default=[8, 16, 32], help="rows a step")
    parser.add_argument("--repeats", type=int, default=8, help="batches timed of each size")
    parser.add_argument("--json", type=Path, help="where to write the results")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    results = []
    for device in ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]:
        found = measure(config, device, given.batches, given.repeats)
        Console().print(table(device, found))
        results += found
    drawn = noise(max(1, given.repeats // 2))
    Console().print(noise_table(drawn))
    if given.json:
        given.json.write_text(
            json.dumps(report(config, given.repeats, results, drawn), indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
