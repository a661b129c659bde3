"""Run all benchmarks, each as a process of its own, and write RESULTS.md.

    python -m simulations.benchmarks
    python -m simulations.benchmarks engine --reports DIR    # that one again, the others from DIR

Half an hour at most on two cores. A benchmark that fails is named in the file, the others are run
all the same, and the exit code is 1; a target that is missed is said and is no failure.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from simulations.benchmarks.machine import machine, versions

BENCHMARKS = ["engine", "scale", "aggregation", "exact", "overhead", "stacks"]
# Too long to be run with the others: `make bench-large`, whose report is kept beside this file.
APART = ["large"]
HERE = Path(__file__).parent
RESULTS = HERE / "RESULTS.md"
TIMEOUT = 1200.0  # seconds of one benchmark

Report = dict[str, Any]


def measured(name: str, folder: Path, options: Sequence[str]) -> Report | str:
    """A benchmark's report, or in words why it gave none; its tables go to the terminal."""
    path = folder / f"{name}.json"
    path.unlink(missing_ok=True)  # an earlier one is not this one's
    command = [sys.executable, "-m", f"simulations.benchmarks.{name}", "--json", str(path)]
    try:
        code = subprocess.run([*command, *options], timeout=TIMEOUT).returncode
    except subprocess.TimeoutExpired:
        return f"it took more than {TIMEOUT:.0f} seconds"
    if code:
        return f"it ended with exit code {code}"
    return read(folder, name)


def read(folder: Path, name: str) -> Report | str:
    """The report that a benchmark wrote, or that there is none."""
    try:
        report: Report = json.loads((folder / f"{name}.json").read_text("utf-8"))
    except (OSError, ValueError):
        return "it wrote no report"
    return report


def written(reports: dict[str, Report | str]) -> str:
    """RESULTS.md."""
    good = {name: report for name, report in reports.items() if isinstance(report, dict)}
    seconds = sum(report["seconds"] for report in good.values())
    lines = [
        "# What the benchmarks measured",
        "",
        f"What `make bench` writes. The benchmarks took {seconds / 60:.1f} minutes together; ratios"
        " were measured side by side in one run of each.",
        "",
        *_table(["machine", ""], [[*pair] for pair in machine().items()]),
        *_table(["version", ""], [[*pair] for pair in versions().items()]),
        "## Targets",
        "",
        *_table(
            ["benchmark", "what", "target", "measured", "met"],
            [
                [name, t["what"], t["target"], t["measured"], "yes" if t["met"] else "**missed**"]
                for name, report in good.items()
                for t in report["targets"]
            ],
        ),
    ]
    if failed := {name: why for name, why in reports.items() if isinstance(why, str)}:
        lines += ["## Failed", "", *(f"- `{name}`: {why}" for name, why in failed.items()), ""]
    for name, report in good.items():
        lines += [f"## {report['title']}", ""]
        lines += [f"`python -m simulations.benchmarks.{name}`, {report['seconds']:.0f} s", ""]
        for table in report["tables"]:
            lines += [f"**{table['title']}**", "", *_table(table["columns"], table["rows"])]
        lines += [*(f"- {note}" for note in report["notes"]), ""]
    return "\n".join(lines).rstrip() + "\n"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [columns, ["---"] * len(columns), *rows]
    return [f"| {' | '.join(cell.replace('|', '∣') for cell in row)} |" for row in cells] + [""]


def main(arguments: Sequence[str] | None = None, results: Path = RESULTS) -> int:
    parser = argparse.ArgumentParser(description="Run all benchmarks and write RESULTS.md.")
    parser.add_argument("names", nargs="*", help="those to run, with --reports; all by default")
    parser.add_argument("--quick", action="store_true", help="a check that all run; no results")
    parser.add_argument("--reports", type=Path, help="where each one's JSON is and stays")
    given = parser.parse_args(arguments)
    if unknown := [name for name in given.names if name not in BENCHMARKS]:
        parser.error(f"{', '.join(unknown)}: there are {', '.join(BENCHMARKS)}")
    if given.names and not given.reports:
        parser.error("what was measured by the others is to be in a folder: --reports DIR")
    reports = {}
    with tempfile.TemporaryDirectory(prefix="fedlora-") as aside:
        folder = given.reports or Path(aside)
        folder.mkdir(parents=True, exist_ok=True)
        for name in BENCHMARKS:
            if name in (given.names or BENCHMARKS):
                print(f"\n== {name}", flush=True)
                reports[name] = measured(name, folder, ["--quick"] * given.quick)
            else:
                reports[name] = read(folder, name)
    reports |= {name: read(HERE, name) for name in APART if (HERE / f"{name}.json").is_file()}
    failed = [name for name, report in reports.items() if isinstance(report, str)]
    if not given.quick:
        results.write_text(written(reports), "utf-8")
        print(f"results: {results.name}")
    for name in failed:
        print(f"error: {name}: {reports[name]}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
