"""What clients cost that are registered and not asked, and what those cost that are.

    python -m simulations.benchmarks.scale --json scale.json

FedSA, so that every client that was asked has a state, with MiniLM and rows of the bundled data,
four a client. Runs of 100, 1,000 and 10,000 clients, 20 of them a round; and of 1,000 clients, 20 a
round for 20 rounds and 200 a round for two. Each is a `fedlora run` with two workers, and they go
by turns.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from fedlora.config import Config
from fedlora.data import load
from simulations.benchmarks.timing import spread
from simulations.benchmarks.watched import Watched, watched

MB = 1e6
WORKERS = 2
SHARE = 0.10  # to reach: how much more the largest may take than the smallest
COLUMNS = ["clients", "sampled", "rounds", "parent", "worker", "together", "a round", "start-up"]
NOTES = [
    "MB: the proportional set size (PSS), in which a page that processes share counts by its share,"
    " or the resident set size where the system tells no other. Looked up ten times a second, from"
    " start to end: the most that was seen, the median of the runs. Worker: of the one that had"
    " more; together: at one moment.",
    "Start-up: from the command until round 1 begins: imports, rows and tokens, the model in every"
    " process, everybody's greeting and the first score.",
    "Seconds a round: median (quartiles) of all rounds but each run's first.",
    "Ten clients share passes in all runs, since how many do is a setting of its own. One update is"
    " what a client sends up; one that stayed in memory for every client would be 180 of them. The"
    " last two runs ask equally many clients in all: the more passes are drawn, the more memory the"
    " largest takes.",
]


class Size(NamedTuple):
    """Clients in all, of a round, and rounds."""

    clients: int
    sampled: int
    rounds: int


SIZES = [Size(100, 20, 5), Size(1000, 20, 5), Size(10000, 20, 5), Size(1000, 20, 20)]
SIZES += [Size(1000, 200, 2)]
QUICK = [Size(6, 2, 2), Size(12, 2, 2), Size(6, 2, 4), Size(6, 4, 2)]


@dataclass(frozen=True)
class Found:
    """Runs of one size, by turns."""

    size: Size
    runs: list[Watched]

    @property
    def rounds(self) -> list[float]:
        """Seconds of every round but each run's first."""
        return [seconds for run in self.runs for seconds in run.rounds[1:]]

    def most(self, of: Callable[[Watched], int]) -> float:
        """MB: the median of the runs' peaks."""
        return median(of(run) for run in self.runs) / MB

    def apart(self, of: Callable[[Watched], int]) -> float:
        """MB between the runs' peaks, which nothing but chance tells apart."""
        return (max(of(run) for run in self.runs) - min(of(run) for run in self.runs)) / MB


def settings(size: Size) -> list[str]:
    """Of a run: one step of two rows a client and round."""
    return [
        "strategy.name=fedsa",
        "data.partition=iid",
        f"data.clients={size.clients}",
        "data.rows=4",
        "data.holdout=0.25",
        "data.public=0",
        f"run.clients_per_round={size.sampled}",
        f"run.rounds={size.rounds}",
        "train.steps=1",
        "train.batch_size=2",
        f"simulation.workers={WORKERS}",
        "simulation.copies=10",
        "simulation.memory=1000",
    ]


def write(folder: Path, clients: int) -> Path:
    """A folder with four of the bundled rows a client, over and over, and the server's own."""
    federation = load(Config().data, 0)
    rows = [{**row, "label": federation.labels[row["label"]]} for row in federation.rows]
    folder.mkdir()
    for name, count in (("train", 4 * clients), ("test", 16)):
        lines = [json.dumps(rows[i % len(rows)]) for i in range(count)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def measure(sizes: Sequence[Size], turns: int, more: Sequence[str], folder: Path) -> list[Found]:
    """Every size once a turn; whose turn begins goes round."""
    found = [Found(size, []) for size in sizes]
    data = {n: write(folder / f"rows-{n}", n) for n in {size.clients for size in sizes}}
    for turn in range(turns):
        for i in range(len(sizes)):
            k = (turn + i) % len(sizes)
            size = sizes[k]
            given = [*settings(size), f"data.name={data[size.clients]}", *more]
            with tempfile.TemporaryDirectory(dir=folder) as place:
                found[k].runs.append(watched(given, Path(place) / "run"))
    return found


def table(found: Sequence[Found]) -> dict[str, Any]:
    rows = []
    for f in found:
        seconds = spread(f.rounds)
        rows.append(
            [
                f"{f.size.clients:,}",
                f"{f.size.sampled}",
                f"{f.size.rounds}",
                f"{f.most(lambda run: run.parent):.0f}",
                f"{f.most(lambda run: run.worker):.0f}",
                f"{f.most(lambda run: run.together):.0f}",
                f"{seconds.median:.2f} ({seconds.low:.2f}–{seconds.high:.2f})",
                f"{median(run.start for run in f.runs):.1f}",
            ]
        )
    return {
        "title": "Memory in MB and seconds, by clients registered and sampled",
        "columns": COLUMNS,
        "rows": rows,
    }


def targets(found: Sequence[Found]) -> list[dict[str, Any]]:
    """Registered clients: how much more the largest number takes than the least; sampled ones: the
    MB that many take over few, of which a difference as between equal runs says nothing."""
    *registered, few, many = found
    made = []
    for what, values in (
        ("memory of all processes", [f.most(lambda run: run.together) for f in registered]),
        ("seconds a round", [median(f.rounds) for f in registered]),
    ):
        more = max(values) / min(values) - 1
        made.append(
            {
                "what": f"{what}, {registered[0].size.clients:,} to "
                f"{registered[-1].size.clients:,} clients: largest over smallest",
                "target": f"≤ {SHARE:.0%} more",
                "measured": f"{more:.1%} more",
                "met": more <= SHARE,
            }
        )
    update = median(run.update for run in many.runs) / MB
    for what, of in (("a worker", lambda run: run.worker), ("the parent", lambda run: run.parent)):
        grown = many.most(of) - few.most(of)
        chance = max(many.apart(of), few.apart(of))
        made.append(
            {
                "what": f"memory of {what}, {few.size.sampled} to {many.size.sampled} clients a "
                f"round of {many.size.clients:,}",
                "target": f"≤ one update ({update:.2f} MB) more than equal runs are apart",
                "measured": f"{grown:+.1f} MB (equal runs: {chance:.1f} MB apart)",
                "met": grown <= update + chance,
            }
        )
    return made


def report(found: Sequence[Found], seconds: float) -> dict[str, Any]:
    """All that was measured, for JSON."""
    return {
        "benchmark": "scale",
        "title": "Registered and sampled clients: memory and time",
        "seconds": seconds,
        "tables": [table(found)],
        "targets": targets(found),
        "notes": NOTES,
        "raw": [{**f.size._asdict(), "runs": [asdict(run) for run in f.runs]} for f in found],
    }


def show(told: dict[str, Any], console: Console) -> None:
    for each in told["tables"]:
        shown = Table(title=each["title"], box=box.SIMPLE_HEAD)
        for header in each["columns"]:
            shown.add_column(header, justify="right", no_wrap=True)
        for row in each["rows"]:
            shown.add_row(*row)
        console.print(shown)
    for target in told["targets"]:
        console.print(f"{target['what']}: {target['measured']}, to reach {target['target']}")


def main(arguments: Sequence[str] | None = None, more: Sequence[str] = ()) -> None:
    """Measure, print the table, and write the JSON file if asked to.

    Args:
        more: settings of the runs.
    """
    parser = argparse.ArgumentParser(description="Memory and time by numbers of clients.")
    parser.add_argument("--quick", action="store_true", help="a few clients, two rounds, once")
    parser.add_argument("--json", type=Path, help="where to write the results")
    given = parser.parse_args(arguments)
    sizes, turns = (QUICK, 1) if given.quick else (SIZES, 2)
    started = perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(sizes, turns, more, Path(folder))
    told = report(found, perf_counter() - started)
    show(told, Console())
    if given.json:
        given.json.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
