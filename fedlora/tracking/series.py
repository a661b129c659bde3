"""Rows of metrics.jsonl as named numbers: `round/score`, and `score/books` of the client books.

Names are those of the rows. Beside them only what follows from them: `round/perplexity`, which is
exp(test_loss), and the bytes since the start, `round/bytes_up_total` and `round/bytes_down_total`.
An ε that has no bound, being infinite or unknown, is infinite here.
"""

import math
from collections.abc import Iterable, Iterator
from itertools import groupby

from fedlora.runs import Row
from fedlora.untrusted import plain

ROUND = (
    "score",
    "personalised",
    "loss",
    "test_loss",
    "personalised_loss",
    "exact_match",
    "rouge_l",
    "f1",
    "bytes_up",
    "bytes_down",
    "seconds",
    "clients",
    "epsilon",
)
CLIENT = ("score", "loss", "test_loss", "epsilon")
BYTES = ("bytes_up", "bytes_down")
LETTERS = 100  # of a client's name


class Series:
    """Keeps the sums over rounds."""

    def __init__(self) -> None:
        self.total = dict.fromkeys(BYTES, 0)

    def add(self, rows: Iterable[Row]) -> Iterator[tuple[int, dict[str, float]]]:
        """Rounds in order, each with its numbers; what is unknown (null) has no name there."""
        for number, found in groupby(rows, key=lambda row: int(row["round"])):
            values: dict[str, float] = {}
            for row in found:
                values |= self._round(row) if row["kind"] == "round" else _client(row)
            yield number, values

    def _round(self, row: Row) -> dict[str, float]:
        values = {f"round/{k}": row[k] for k in ROUND if _known(row.get(k))}
        if _known(row.get("test_loss")) and row["test_loss"] < 100:  # e¹⁰⁰ tells nobody anything
            values["round/perplexity"] = math.exp(row["test_loss"])
        for key in BYTES:
            if key in row:  # else it is withheld
                self.total[key] += row[key]
                values[f"round/{key}_total"] = self.total[key]
        return values | ({"round/epsilon": math.inf} if _unbounded(row) else {})


def _client(row: Row) -> dict[str, float]:
    name = plain(row["client"], LETTERS)  # a part of names in other people's tools
    values = {f"{k}/{name}": row[k] for k in CLIENT if _known(row.get(k))}
    return values | ({f"epsilon/{name}": math.inf} if _unbounded(row) else {})


def _unbounded(row: Row) -> bool:
    """Whether this is a private run's and there is no bound on its ε."""
    return row.get("epsilon", 0.0) is None


def _known(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
