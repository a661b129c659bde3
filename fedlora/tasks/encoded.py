"""Tokenised rows: one table for all, of which a client's rows are a selection.

Shapes: n rows of the table, of T tokens in all; k of them selected.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedlora.errors import UserError
from fedlora.pieces import padded

BEGINNING = 60  # characters of a row, by which it is found


@contextmanager
def named(text: str) -> Iterator[None]:
    """Inside, an error is one of the row with this text."""
    try:
        yield
    except UserError as error:
        raise UserError(f"the row that begins {text[:BEGINNING]!r}: {error}") from None


@dataclass(frozen=True)
class Encoded:
    """Some rows of a table that holds its rows end to end: the table's row j is its tokens
    starts[j] to starts[j + 1]. Selections share the table and copy none of it."""

    inputs: dict[str, Tensor]  # the model's inputs by name, each (T,) int32
    starts: NDArray[np.int64]  # (n + 1,)
    labels: Tensor  # (n,) int64
    cut: NDArray[np.bool_]  # (n,): whether a row was longer, and its end is not here
    rows: NDArray[np.int64]  # (k,): which rows of the table these are

    def __len__(self) -> int:
        return len(self.rows)

    def length(self, i: int) -> int:
        """The tokens of the i-th of these rows."""
        row = self.rows[i]
        return int(self.starts[row + 1] - self.starts[row])

    def tokens(self, name: str, i: int) -> Tensor:
        """An input of the i-th of these rows, (length,)."""
        row = self.rows[i]
        return self.inputs[name][self.starts[row] : self.starts[row + 1]]

    def select(self, indices: "Sequence[int] | NDArray[Any]") -> "Encoded":
        """The rows `indices` of these rows, in that order."""
        return replace(self, rows=self.rows[np.asarray(indices, dtype=np.int64)])

    @property
    def truncated(self) -> int:
        """How many of these rows lack their end."""
        return int(self.cut[self.rows].sum())

    def padded(
        self, indices: Sequence[int], padding: Mapping[str, int], most: int
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Some of these rows (at least one) side by side: the inputs by name, (b, t) int64, and
        their labels (b,). Padding, 0 unless `padding` says otherwise, is on the right, where it
        moves no token's position; past `most` tokens the model may have none."""
        rows = self.rows[list(indices)]
        starts, ends = self.starts[rows], self.starts[rows + 1]
        spans = [slice(start, end) for start, end in zip(starts, ends, strict=True)]
        lengths = torch.from_numpy(ends - starts)
        width = min(padded(int(lengths.max())), most)
        kept = torch.arange(width) < lengths[:, None]  # (b, t)
        batch = {}
        for name, tokens in self.inputs.items():
            filled = torch.full(kept.shape, padding.get(name, 0))
            filled[kept] = torch.cat([tokens[span] for span in spans]).long()
            batch[name] = filled
        return batch, self.labels[torch.from_numpy(rows)]

    @classmethod
    def row(cls, inputs: dict[str, Tensor], label: int = 0) -> "Encoded":
        """A table of one row with these tokens, (length,) int32 each."""
        (length,) = {len(tokens) for tokens in inputs.values()}
        return cls(
            inputs=inputs,
            starts=np.array([0, length], dtype=np.int64),
            labels=torch.tensor([label]),
            cut=np.zeros(1, dtype=np.bool_),
            rows=np.arange(1),
        )

    @staticmethod
    def joined(parts: "Sequence[Encoded]") -> "Encoded":
        """The rows of one or more selections, one after another: of the same table, or copied into
        a new one."""
        if all(part.inputs is parts[0].inputs for part in parts):
            return replace(parts[0], rows=np.concatenate([part.rows for part in parts]))
        lengths = [part.length(i) for part in parts for i in range(len(part))]
        return Encoded(
            inputs={
                name: torch.cat([part.tokens(name, i) for part in parts for i in range(len(part))])
                for name in parts[0].inputs
            },
            starts=np.cumsum([0, *lengths], dtype=np.int64),
            labels=torch.cat([part.labels[torch.from_numpy(part.rows)] for part in parts]),
            cut=np.concatenate([part.cut[part.rows] for part in parts]),
            rows=np.arange(len(lengths)),
        )
