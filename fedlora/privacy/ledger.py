"""What has been spent of a privacy budget, on disk, and never rolled back.

The order is what counts: a spend is on disk before anything is computed from it, so a crash can
lose a release that was paid for, but cannot make one that was not.
"""

import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from fedlora import files
from fedlora.errors import UserError
from fedlora.privacy.accounting import History, Mechanism, merged

SECRET = 32  # bytes


@dataclass(frozen=True)
class _State:
    """What the file holds. `key` and `secret` are those of the latest spend, empty before it."""

    mechanism: Mechanism | None = None
    history: History = field(default_factory=list)
    key: str = ""
    secret: bytes = b""


class Ledger:
    """One privacy budget's spending, in a JSON file that only its owner may read.

    Each change is on disk (fsync, atomic rename) before it is answered for. One process at a time
    uses a file. Raises UserError, at first use, where the file is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def history(self) -> History:
        """(σ, q, steps) of everything spent, equal neighbours merged."""
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

    def spend(self, key: str, steps: int) -> bytes:
        """Add `steps` of the plan; the 32 bytes that this release draws all its randomness from.

        `key` is a digest of everything that goes into the release. A repeat with the key of the
        spend just before is the same release again: it costs nothing and gets the same bytes, so a
        round that is repeated after a crash ends in the same bits. Any other key forgets them.
        """
        state = self._read()
        if _repeats(state, key):
            return state.secret
        secret = os.urandom(SECRET)
        history = merged([*state.history, _step(state, steps)])
        self._write(replace(state, history=history, key=key, secret=secret))
        return secret

    def repeats(self, key: str) -> bool:
        """Whether a spend with this key would be the repeat of the one just before."""
        return _repeats(self._read(), key)

    def forget(self) -> None:
        """Erase the latest secret, once its release cannot be asked for again."""
        state = self._read()
        if state.secret:
            self._write(replace(state, key="", secret=b""))

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
        known, said = _totals(state.history), _totals(history)
        missing = [(*pair, n - known.get(pair, 0)) for pair, n in said.items()]
        more = [entry for entry in missing if entry[2] > 0]
        if more:
            self._write(replace(state, history=merged([*state.history, *more])))

    def after(self, steps: int) -> History:
        """The history as it would be after so many more steps of the plan."""
        state = self._read()
        return merged([*state.history, _step(state, steps)])

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
        """All of it or nothing, and on disk, with the folders that are new."""
        folder = self.path.parent
        new = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({**asdict(state), "secret": state.secret.hex()})
        files.write(self.path, text, 0o600)
        for path in (folder, *(path.parent for path in new)):
            files.sync(path)


def _repeats(state: _State, key: str) -> bool:
    return bool(state.secret) and state.key == key


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
    plan, secret = data["mechanism"], bytes.fromhex(data["secret"])
    history = [(float(sigma), float(q), int(steps)) for sigma, q, steps in data["history"]]
    _check(history)
    if len(secret) not in (0, SECRET):
        raise ValueError(f"a secret of {len(secret)} bytes")
    mechanism = Mechanism(**{k: float(v) for k, v in plan.items()}) if plan is not None else None
    return _State(mechanism, history, str(data["key"]), secret)


def _damaged(path: Path, why: Exception) -> UserError:
    return UserError(
        f"{path}, the record of spent privacy, cannot be read ({why}), so nothing may be spent: "
        "put it back from a copy. Without one, remove it only if the rows are new: what was spent "
        "on the old ones stays spent"
    )
