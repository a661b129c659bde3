"""A comparison's tables: on the console, as CSV, Markdown and LaTeX.

comparison.csv    a line a method: the mean of a measure, beside it its `…_deviation`, and the
                  difference to the reference; unrounded, empty where unknown
runs.csv          a line a run, the fields of `Result`
comparison.md     for a README: what the console shows
comparison.tex    the same as plain `tabular`, which needs no package
"""

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from fedlora import comparison, files, untrusted
from fedlora.comparison import MEASURES, Difference, Result, Summary
from fedlora.report import WITHHELD, amount, number, plain_table, spent, whole
from fedlora.untrusted import LONG

Cells = list[list[str]]  # the header, then lines; the first column is text, the others numbers


def cells(results: Sequence[Result]) -> list[Cells]:
    """The table of methods, and where there are several seeds that of differences."""
    found = comparison.differences(results)
    methods = _methods(comparison.summaries(results))
    return [methods, _differences(found)] if any(d.seeds > 1 for d in found) else [methods]


def write(results: Sequence[Result], folder: Path, notes: Sequence[str] = ()) -> None:
    """All four files; each is whole, or as it was before. `notes` stand below the tables."""
    lines = _lines(results)
    _csv(list(lines[0]) if lines else [], lines, folder / "comparison.csv")
    names = [field.name for field in fields(Result)]
    _csv(names, map(asdict, results), folder / "runs.csv")
    tables, said = cells(results), [*comparison.remarks(results), *notes]
    shown = [*map(markdown, tables), *(f"{untrusted.markdown(line, LONG)}\n" for line in said)]
    files.write(folder / "comparison.md", "\n".join(shown))
    shown = [*map(latex, tables), "".join(f"% {untrusted.plain(line, LONG)}\n" for line in said)]
    files.write(folder / "comparison.tex", "\n".join(shown))


def console(cells: Cells) -> Table:
    """For `report.show`."""
    header, *lines = cells
    table = plain_table(*header)
    table.columns[0].justify = "left"
    for line in lines:
        table.add_row(*(Text(untrusted.plain(cell)) for cell in line))
    return table


def markdown(cells: Cells) -> str:
    """A pipe table in which nothing of a name is markup."""
    header, *lines = ([untrusted.markdown(cell) for cell in line] for line in cells)
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "".join(f"| {' | '.join(line)} |\n" for line in [header, rule, *lines])


def latex(cells: Cells) -> str:
    """A `tabular` between plain rules, in which nothing of a name is a command."""
    header, *lines = (" & ".join(map(untrusted.latex, line)) + r" \\" for line in cells)
    columns = "l" + "r" * (len(cells[0]) - 1)
    body = ["\\hline", header, "\\hline", *lines, "\\hline"]
    return "\n".join([f"\\begin{{tabular}}{{{columns}}}", *body, "\\end{tabular}"]) + "\n"


# What is shown


def _methods(found: Sequence[Summary]) -> Cells:
    """One line a method; the losses and ε have a column if any has one."""
    columns: dict[str, Callable[[Summary], str]] = {
        "method": lambda s: s.method,
        "score": lambda s: _shown(s, "score", number),
        "personalised": lambda s: _shown(s, "personalised", number),
        "test loss": lambda s: _shown(s, "test_loss", number),
        "perplexity": lambda s: _shown(s, "perplexity", lambda x: number(x, 2)),
        "ε": lambda s: "–" if s.epsilon is None else spent(s.epsilon),
        "parameters": lambda s: f"{s.trained_parameters:,}",
        "up": lambda s: _cost(s, "bytes_up", amount),
        "down": lambda s: _cost(s, "bytes_down", amount),
        "seconds": lambda s: _cost(s, "seconds", lambda x: number(x, 1)),
    }
    for name in ("test_loss", "perplexity"):
        if all(s.measures[name] is None for s in found):
            del columns[name.replace("_", " ")]
    if all(s.epsilon is None for s in found):
        del columns["ε"]
    return [[*columns], *([cell(s) for cell in columns.values()] for s in found)]


def _shown(summary: Summary, measure: str, written: Callable[[Any], str]) -> str:
    """Mean ± deviation, the latter where there is one: bytes are often the same in every seed."""
    spread = summary.measures[measure]
    mean = written(None if spread is None else spread.mean)
    exact = measure.startswith("bytes") and spread is not None and not spread.deviation
    if spread is None or spread.deviation is None or exact:
        return mean
    return f"{mean} ± {written(spread.deviation)}"


def _cost(summary: Summary, measure: str, written: Callable[[Any], str]) -> str:
    """Every run has a cost, so one that is not known is withheld."""
    known = summary.measures[measure] is not None
    return _shown(summary, measure, written) if known else WITHHELD


def _differences(found: Iterable[Difference]) -> Cells:
    """One line a method that is not the reference."""
    header = ["method", "difference of score", "95% interval", "p", "p (Holm)"]
    lines = (
        [
            d.method,
            _signed(d.mean),
            "–" if d.low is None else f"{_signed(d.low)} to {_signed(d.high)}",
            _chance(d.p),
            _chance(d.adjusted),
        ]
        for d in found
    )
    return [header, *lines]


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{round(value, 3) + 0.0:+.3f}".replace("-", "−")


def _chance(p: float | None) -> str:
    return "–" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"


# CSV


def _lines(results: Sequence[Result]) -> list[dict[str, Any]]:
    """The columns of comparison.csv, a line a method."""
    found = {d.method: d for d in comparison.differences(results)}
    lines = []
    for s in comparison.summaries(results):
        line: dict[str, Any] = {"method": s.method, "seeds": s.seeds}
        for name in MEASURES:
            spread = s.measures[name]
            line |= {name: spread and spread.mean, f"{name}_deviation": spread and spread.deviation}
        line |= {"trained_parameters": s.trained_parameters, "epsilon": s.epsilon}
        d = found.get(s.method, Difference(s.method, s.seeds, None))
        line |= {"reference": results[0].method if s.method in found else None}
        line |= {"difference": d.mean, "difference_low": d.low, "difference_high": d.high}
        lines.append(line | {"p": d.p, "p_holm": d.adjusted})
    return lines


def _csv(header: Sequence[str], lines: Iterable[Mapping[str, Any]], path: Path) -> None:
    with whole(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, header)
        writer.writeheader()
        writer.writerows({k: untrusted.field(v) for k, v in line.items()} for line in lines)
