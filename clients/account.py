"""What a node has given of its owner's rows, all runs together, and how much more it may.

    <state-dir>/account-<client>.json

        delta       δ of the owner's budget, fixed when the first release is paid for
        spent       {experiment: {"train" or "heldout": [[σ, q, steps], …]}}
        division    {experiment: digest of its rows and of which are held out}
        answered    {experiment: {"train", "evaluate" or "gradients …": answers}}

It is written before anything is computed from what it allows (releases) or before the answer leaves
(answers), so a crash can lose an answer that was counted, and cannot give one that was not. Nothing
that a server says is in it. Where the file is missing, what the runs' own ledgers hold is taken
over.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from clients.owner import Owner, Refused
from clients.store import plain
from fedlora import files
from fedlora.errors import UserError
from fedlora.privacy import accounting
from fedlora.privacy.accounting import History, merged
from fedlora.privacy.budget import Spent
from fedlora.privacy.ledger import Ledger, parsed

Step = tuple[float, float, int]

# In one run no row is in both, so that each has the whole budget; a run may hold out rows that
# another trained on, so other runs count with both.
LEDGERS = {"train": "privacy.json", "heldout": "privacy-heldout.json"}


@dataclass
class _Record:
    delta: float | None = None
    spent: dict[str, dict[str, History]] = field(default_factory=dict)
    division: dict[str, str] = field(default_factory=dict)
    answered: dict[str, dict[str, int]] = field(default_factory=dict)


class Account:
    """The account of one owner's rows. Raises UserError, at each use, where its file is damaged."""

    def __init__(self, root: Path, owner: Owner, client: str) -> None:
        self.owner = owner
        self._root, self._client = root, plain(client)
        self.path = root / f"account-{self._client}.json"

    def allow(self, experiment: str, *kinds: str) -> None:
        """Raises Refused where no more answers of one of these kinds are allowed, in this run or in
        all."""
        most, all_runs = self.owner.max_rounds, self.owner.max_total_rounds
        answered = self._read().answered
        run = answered.get(experiment, {})
        if max(run.get(kind, 0) for kind in kinds) >= most:
            raise Refused(
                f"this node's owner allows {most} rounds of a run, and so many were answered: ask "
                "the owner for another max-rounds"
            )
        if max(sum(x.get(kind, 0) for x in answered.values()) for kind in kinds) >= all_runs:
            raise Refused(
                f"this node's owner allows {all_runs} rounds of all runs together, and so many "
                "were answered: ask the owner for another max-total-rounds"
            )

    def count(self, experiment: str, *kinds: str) -> None:
        """One more answer of each kind."""
        record = self._read()
        answered = record.answered.setdefault(experiment, {})
        for kind in kinds:
            answered[kind] = answered.get(kind, 0) + 1
        self._write(record)

    def delta(self, rows: int) -> float:
        """δ of the budget: the owner's, or 1/(2·rows) of all rows of the file; whichever it was
        first. Raises UserError where the owner's settings say another since."""
        record = self._read()
        if record.delta is None:
            record.delta = self.owner.delta or 1 / (2 * rows)
            self._write(record)
        if self.owner.delta not in (None, record.delta):
            raise UserError(
                f"{self.path} keeps δ = {record.delta:g}, and the node's settings say delta = "
                f"{self.owner.delta:g}: a budget keeps the δ that it began with; put it back, or "
                "begin with new rows and a new state-dir"
            )
        return record.delta

    def pin(self, experiment: str, division: str) -> None:
        """A run keeps the rows, and their division, that it began with: another seed would hold out
        what was trained on. Raises UserError where they changed."""
        record = self._read()
        if record.division.setdefault(experiment, division) != division:
            raise UserError(
                f"{self.path}: the rows of this client, or which of them are held out, are not "
                "those that this run began with, so its account does not hold for them: put them "
                "back, or start another run"
            )
        self._write(record)

    def spend(self, experiment: str, kind: str, step: Step, run: History, rows: int) -> None:
        """Write down a release: σ, q and steps. Raises Spent where that would take all runs
        together past the owner's ε, at the owner's δ; who asks is told nothing of other runs.

        Args:
            run: what this run's own ledger has of this kind; it may hold what the server said,
                which counts in this run and in no other.
            rows: all rows of the data, see `delta`.
        """
        delta, cap = self.delta(rows), self.owner.epsilon
        record = self._read()
        own = record.spent.setdefault(experiment, {}).setdefault(kind, [])
        others = [
            entry
            for name, kinds in record.spent.items()
            if name != experiment
            for history in kinds.values()
            for entry in history
        ]
        after = merged([*own, step])
        spent = max(accounting.epsilon(h, delta) for h in ([*others, *after], [*run, step]))
        if cap is not None and spent > cap:
            raise Spent("what this node's owner allows over all runs on its rows is spent")
        record.spent[experiment][kind] = after
        self._write(record)

    def _read(self) -> _Record:
        try:
            data = json.loads(self.path.read_text("utf-8"))
            delta = data["delta"]
            if not (delta is None or 0 < delta < 1):
                raise ValueError(f"δ = {delta}")
            spent, answered = data["spent"].items(), data["answered"].items()
            return _Record(
                delta,
                {run: {k: parsed(h) for k, h in kinds.items()} for run, kinds in spent},
                {run: str(digest) for run, digest in data["division"].items()},
                {run: {k: int(n) for k, n in kinds.items()} for run, kinds in answered},
            )
        except FileNotFoundError:
            return _Record(spent=self._ledgers())
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as why:
            raise UserError(
                f"{self.path}, the account of what was given of these rows, cannot be read "
                f"({why}), so nothing is given: put it back from a copy"
            ) from why

    def _write(self, record: _Record) -> None:
        files.record(self.path, json.dumps(asdict(record)))

    def _ledgers(self) -> dict[str, dict[str, History]]:
        """What the runs of this state directory spent, by their own ledgers."""
        found = {}
        for run in sorted(self._root.glob("run-*")):
            folder = run / f"client-{self._client}"
            held = {kind: Ledger(folder / name).spent for kind, name in LEDGERS.items()}
            found[run.name.removeprefix("run-")] = {k: h for k, h in held.items() if h}
        return found
