"""Series: runs that differ in their seed alone, and how one series differs from another."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fedlora.page.collect import BASELINES, Run

OWN = ("run.seed", "run.name", "run.dir", "run.track")  # these make no other experiment
SHOWN = 2  # most settings in a label
DASH = "–"


@dataclass(frozen=True)
class Series:
    """Runs of one experiment with different seeds.

    Attributes:
        label: the method, with the settings that set it apart where the method does not.
        runs: by seed; each has finished a round.
        place: which of the page's methods, or of its baselines, this is; decides its colour.
    """

    label: str
    runs: Sequence[Run]
    place: int

    @property
    def baseline(self) -> bool:
        return self.runs[0].method in BASELINES

    @property
    def last(self) -> int:
        """The last round that all its runs have finished."""
        return min(run.last for run in self.runs)

    @property
    def style(self) -> str:
        """Its classes in the style sheet: seven colours, then the same ones dashed; grey for a
        baseline."""
        if self.baseline:
            return f"baseline dash-{self.place % 2 + 1}"
        return f"colour-{self.place % 7} dash-{self.place // 7 % 3}"


def group(runs: Iterable[Run]) -> list[Series]:
    """The series of runs that have finished a round, methods before baselines, each in the order
    of their first runs."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(json.dumps(setup(run), sort_keys=True), []).append(run)
    ordered = sorted(groups.values(), key=lambda members: members[0].method in BASELINES)
    names = labels([members[0] for members in ordered])
    methods = sum(members[0].method not in BASELINES for members in ordered)
    return [
        Series(
            name,
            sorted(members, key=lambda run: (run.config["run.seed"], run.name)),
            i if i < methods else i - methods,
        )
        for i, (name, members) in enumerate(zip(names, ordered, strict=True))
    ]


def setup(run: Run) -> dict[str, Any]:
    """The configuration that makes this an experiment of its own: how a machine went about it
    changes no result, except by rounding."""
    return {
        key: value
        for key, value in run.config.items()
        if key not in OWN and not key.startswith("simulation.") and value is not None
    }


def differing(runs: Sequence[Run]) -> list[str]:
    """The keys of the setup in which these runs differ, in the configuration's order."""
    setups = [setup(run) for run in runs]
    keys = dict.fromkeys(key for run in runs for key in run.config)
    return [k for k in keys if len({json.dumps(s.get(k)) for s in setups}) > 1]


def labels(runs: Sequence[Run]) -> list[str]:
    """A name for each of these runs, no two of which have the same setup: its method, and where
    others share that the settings in which they differ (null ones are not said), or a number where
    those are many."""
    names = []
    for run in runs:
        alike = [other for other in runs if other.method == run.method]
        keys = differing(alike)
        if not keys:
            names.append(run.method)
        elif len(keys) > SHOWN:
            names.append(f"{run.method} ({alike.index(run) + 1})")
        else:
            own = {key.partition(".")[2]: run.config.get(key) for key in keys}
            parts = (f", {key} {show(value)}" for key, value in own.items() if value is not None)
            names.append(run.method + "".join(parts))
    return names


def show(value: Any) -> str:
    """A setting as people read it."""
    if value is None:
        return DASH
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
