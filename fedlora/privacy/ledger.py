"""What has been spent of a privacy budget, on disk, and never rolled back.

The order is what counts: a spend is on disk before anything is computed from it, so a crash can
lose a release that was paid for, but cannot make one that was not.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from fedlora import files
from fedlora.errors import UserError
from fedlora.privacy.accounting import History, Mechanism, merged


@dataclass(frozen=True)
class _State:
    """What the file holds; `told` is what somebody else said of it."""

    mechanism: Mechanism | None = None
    history: History = field(default_factory=list)
    told: History = field(default_factory=list)

    @property
    def all(self) -> History:
        return merged(sorted([*self.told, *self.history]))


class Ledger:
    """One privacy budget's spending, in a JSON file that only its owner may read.

    Each change is on disk (fsync, atomic rename) before it is answered for. One process at a time
    uses a file. Raises UserError, at first use, where the file is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def history(self) -> History:
        """(σ, q, steps) of everything spent, equal neighbours merged, what was told included."""
        return self._read().all

    @property
    def spent(self) -> History:
        """The same without what was told: spent from this very file."""
        return self._read().history

    @property
    def mechanism(self) -> Mechanism | None:
        """The plan, None before there is one."""
        return self._read().mechanism

    def plan(self, mechanism: Mechanism) -> Mechanism:
        """The first plan ever given, kept from then on: a run that is resumed with more rounds
        keeps its σ."""
        state = self._read()
        if state.mechanism is None:
            state = replace(state, mechanism=mechanism)
            self._write(state)
        return state.mechanism or mechanism

    def spend(self, steps: int) -> None:
        """Add `steps` of the plan."""
        state = self._read()
        self._write(replace(state, history=merged([*state.history, _step(state, steps)])))

    def adopt(self, history: Iterable[Sequence[float]]) -> None:
        """Take over what somebody else knows was spent, for a disk that was lost or put back.

        Of every (σ, q) the larger number of steps counts, so ε never falls, whatever is said.
        Raises UserError, before anything is written, where that is no history.
        """
        history, state = list(history), self._read()
        try:
            _check(history)
        except ValueError as why:
            raise UserError(f"what was said to be spent of a privacy budget is not: {why}") from why
        known, said = _totals(state.all), _totals(history)
        missing = [(*pair, n - known.get(pair, 0)) for pair, n in said.items()]
        more = [entry for entry in missing if entry[2] > 0]
        if more:
            self._write(replace(state, told=merged([*state.told, *more])))

    def after(self, steps: int) -> History:
        """The history as it would be after so many more steps of the plan."""
        state = self._read()
        return merged([*state.all, _step(state, steps)])

    def _read(self) -> _State:
        try:
            text = self.path.read_text("utf-8")
        except FileNotFoundError:
            return _State()
        except (OSError, ValueError) as why:
            raise _damaged(self.path, why) from why
        try:
            return _parsed(text)
        except (ValueError, KeyError, TypeError, AttributeError) as why:
            raise _damaged(self.path, why) from why

    def _write(self, state: _State) -> None:
        held = asdict(state)
        if not state.told:
            del held["told"]
        files.record(self.path, json.dumps(held))


def _step(state: _State, steps: int) -> tuple[float, float, int]:
    if state.mechanism is None:
        raise ValueError("the ledger has no plan yet")
    if steps < 0:
        raise ValueError(f"{steps} steps cannot be spent")
    return state.mechanism.noise_multiplier, state.mechanism.sample_rate, steps


def _totals(history: Iterable[Sequence[float]]) -> dict[tuple[float, float], int]:
    """Steps of every (σ, q)."""
    totals: dict[tuple[float, float], int] = {}
    for sigma, q, steps in history:
        totals[sigma, q] = totals.get((sigma, q), 0) + int(steps)
    return totals


def _check(history: Iterable[Sequence[float]]) -> None:
    """Raises ValueError where an entry is no number of steps at some σ and q."""
    for sigma, q, steps in history:
        if not (0 <= sigma < math.inf and 0 <= q <= 1 and steps >= 0):
            raise ValueError(f"{steps} steps at σ = {sigma} and q = {q}")


def _parsed(text: str) -> _State:
    """Raises ValueError, KeyError, TypeError or AttributeError where the text is no ledger."""
    data = json.loads(text)
    plan, history, told = data["mechanism"], parsed(data["history"]), parsed(data.get("told", []))
    mechanism = Mechanism(**{k: float(v) for k, v in plan.items()}) if plan is not None else None
    return _State(mechanism, history, told)


def parsed(entries: Iterable[Sequence[float]]) -> History:
    """A history as JSON has it. Raises ValueError or TypeError where it is none."""
    history = [(float(sigma), float(q), int(steps)) for sigma, q, steps in entries]
    _check(history)
    return history


def _damaged(path: Path, why: Exception) -> UserError:
    return UserError(
        f"{path}, the record of spent privacy, cannot be read ({why}), so nothing may be spent: "
        "put it back from a copy. Without one, remove it only if the rows are new: what was spent "
        "on the old ones stays spent"
    )
