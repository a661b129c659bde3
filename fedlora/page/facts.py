"""Tables: what came out, how the series differ, what happened in each run, what it was made with.

A table is its heads and its rows of texts.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedlora import report
from fedlora.page.collect import Run, known
from fedlora.page.series import DASH, OWN, Series, differing, show
from fedlora.page.statistics import ByRound, Spread, field, final, total
from fedlora.report import amount, number, spent


@dataclass(frozen=True)
class Cell:
    """A text, and what stands smaller beside it."""

    text: str
    beside: str = ""


@dataclass(frozen=True)
class Table:
    heads: Sequence[str]
    rows: Sequence[tuple[str, str, Sequence[Cell]]]  # a name, its style, the cells


@dataclass(frozen=True)
class Trouble:
    """A client whose update a round went without, and why."""

    round: int
    client: str
    kind: str
    reason: str


ROUNDS: Mapping[str, tuple[str, int]] = {
    "score": ("score", 3),
    "exact_match": ("exact match", 3),
    "rouge_l": ("ROUGE-L", 3),
    "f1": ("F1", 3),
    "personalised": ("personalised", 3),
    "test_loss": ("held-out loss", 4),
    "loss": ("training loss", 4),
}


def results(series: Sequence[Series]) -> Table:
    """After the last round that all of a series' runs have finished: scores and losses then, bytes
    and seconds until then. Columns that nobody has a value for are left out."""
    columns: dict[str, list[Cell]] = {}

    def column(head: str, of: Callable[[Run], ByRound], show: Callable[[Spread], Cell]) -> None:
        found = [final(s, of) for s in series]
        if any(found):
            columns[head] = [show(spread) if spread else Cell(DASH) for spread in found]

    for key, (head, digits) in ROUNDS.items():
        if key == "loss" and ROUNDS["test_loss"][0] in columns:
            continue  # the one that tells more
        column(score_name(series) if key == "score" else head, field(key), _around(digits))
        if key == "test_loss" and instructed(series):
            column("perplexity", perplexity, _around(2))
    if any(map(private, series)):
        found = [final(s, field("epsilon")) for s in series]
        columns["ε"] = [
            Cell(spent(e.high if e else None) if private(s) else DASH)
            for s, e in zip(series, found, strict=True)
        ]
    column("up", total("bytes_up"), lambda spread: Cell(amount(round(spread.mean))))
    column("down", total("bytes_down"), lambda spread: Cell(amount(round(spread.mean))))
    column("seconds", total("seconds"), _around(1))
    rows = [
        (s.label, s.style, [column[i] for column in columns.values()]) for i, s in enumerate(series)
    ]
    return Table([*columns], rows)


def instructed(series: Sequence[Series]) -> bool:
    """Whether these are language models, whose score is the share of right tokens."""
    return all(run.config["model.task"] == "instruction" for s in series for run in s.runs)


def private(series: Series) -> bool:
    return any(report.private(run.rounds) for run in series.runs)


def score_name(series: Sequence[Series]) -> str:
    return "token accuracy" if instructed(series) else "score"


def perplexity(run: Run) -> ByRound:
    """The exponential of the held-out loss a token."""
    found = {n: report.perplexity(loss) for n, loss in run.values("test_loss").items()}
    return {n: value for n, value in found.items() if value is not None and known(value)}


def _around(digits: int) -> Callable[[Spread], Cell]:
    def show(spread: Spread) -> Cell:
        beside = "" if spread.deviation is None else f"± {number(spread.deviation, digits)}"
        return Cell(number(spread.mean, digits), beside)

    return show


def differences(series: Sequence[Series]) -> Table:
    """The settings in which series differ, a line each."""
    first = [s.runs[0] for s in series]
    rows = [(k, "", [Cell(show(run.config.get(k))) for run in first]) for k in differing(first)]
    return Table([s.label for s in series], rows)


def common(runs: Sequence[Run]) -> dict[str, dict[str, str]]:
    """The settings that all runs share, by section; what was chosen for each machine as well, with
    every value."""
    tables: dict[str, dict[str, str]] = {}
    apart = {*differing(runs), *OWN}
    for key in dict.fromkeys(key for run in runs for key in run.config if key not in apart):
        section, _, name = key.partition(".")
        values = dict.fromkeys(show(run.config.get(key)) for run in runs)
        tables.setdefault(section, {})[name] = " · ".join(values)
    return tables


def setting(runs: Sequence[Run], key: str) -> str:
    """What the runs have there: one value, or all of them."""
    return ", ".join(dict.fromkeys(show(run.config.get(key)) for run in runs))


def runs(series: Sequence[Series]) -> Table:
    """A line a run: how far it got and who was missing."""
    rows = [
        (run.name, s.style, [Cell(text) for text in _run(s, run)]) for s in series for run in s.runs
    ]
    heads = ["series", "seed", "rounds", "clients", "failed", "dropped", "seconds"]
    return Table(heads, rows)


def _run(series: Series, run: Run) -> list[str]:
    missing = [t.kind for t in troubles(run)]
    seconds = sum(row.get("seconds") or 0 for row in run.rounds)
    begins = [
        series.label,
        show(run.config["run.seed"]),
        f"{run.last} of {run.config['run.rounds']}",
    ]
    if report.withheld(run.rounds):
        return [*begins, *[report.WITHHELD] * 4]
    return [
        *begins,
        str(len({row["client"] for row in run.clients})),
        str(missing.count("failed")),
        str(missing.count("dropped")),
        number(seconds, 1),
    ]


def troubles(run: Run) -> list[Trouble]:
    """Who failed (did not answer, or could not train) and whose update was dropped."""
    return [
        Trouble(row["round"], client, kind, str(reason))
        for row in run.rounds
        for kind in ("failed", "dropped")
        for client, reason in (row.get(kind) or {}).items()
    ]


def environments(runs: Sequence[Run]) -> list[tuple[str, Mapping[str, Any]]]:
    """The different environments, each with the runs that it made."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(json.dumps(run.environment, sort_keys=True), []).append(run)
    return [(", ".join(run.name for run in made), made[0].environment) for made in groups.values()]
