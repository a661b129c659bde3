"""Tokenised rows: one table for all, of which a client's rows are a selection.

Shapes: n rows of the table, of T tokens in all; k of them selected.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Encoded:
    """Some rows of a table that holds its rows end to end: the table's row j is its tokens
    starts[j] to starts[j + 1]. Selections share the table and copy none of it."""

    inputs: dict[str, Tensor]  # the model's inputs by name, each (T,) int32
    starts: NDArray[np.int64]  # (n + 1,)
    labels: Tensor  # (n,) int64
    rows: NDArray[np.int64]  # (k,): which rows of the table these are

    def __len__(self) -> int:
        return len(self.rows)

    def length(self, i: int) -> int:
        """The tokens of the i-th of these rows."""
        row = self.rows[i]
        return int(self.starts[row + 1] - self.starts[row])

    def select(self, indices: "Sequence[int] | NDArray[Any]") -> "Encoded":
        """The rows `indices` of these rows, in that order."""
        return replace(self, rows=self.rows[np.asarray(indices, dtype=np.int64)])

    @staticmethod
    def joined(parts: "Sequence[Encoded]") -> "Encoded":
        """The rows of one or more selections of the same table, one after another."""
        assert all(part.inputs is parts[0].inputs for part in parts), "rows of different tables"
        return replace(parts[0], rows=np.concatenate([part.rows for part in parts]))
