"""Selections of a table of tokens, against the rows written out."""

import numpy as np
import torch

from fedlora.tasks.encoded import Encoded

ROWS = [[5, 6], [7], [], [8, 9, 10], [11]]


def table() -> Encoded:
    return Encoded(
        inputs={"input_ids": torch.tensor([x for row in ROWS for x in row], dtype=torch.int32)},
        starts=np.cumsum([0, *map(len, ROWS)]),
        labels=torch.arange(len(ROWS)),
        cut=np.zeros(len(ROWS), dtype=np.bool_),
        rows=np.arange(len(ROWS)),
    )


def written(encoded: Encoded) -> list[list[int]]:
    tokens = encoded.inputs["input_ids"].tolist()
    found = [tokens[encoded.starts[row] : encoded.starts[row + 1]] for row in encoded.rows]
    assert [len(row) for row in found] == [encoded.length(i) for i in range(len(encoded))]
    return found


def test_a_selection_has_its_rows_in_their_order_and_copies_no_token():
    """The i-th row of a selection is the i-th that was asked for, also of a selection's selection;
    the tokens are the table's own."""
    whole = table()
    chosen = whole.select([3, 0, 2, 0])
    assert written(chosen) == [[8, 9, 10], [5, 6], [], [5, 6]]
    assert written(chosen.select(np.array([2, 0]))) == [[], [8, 9, 10]]
    assert len(whole.select([])) == 0
    assert chosen.inputs is whole.inputs and chosen.labels is whole.labels


def test_selections_are_joined_in_order_and_copied_only_where_tables_differ():
    """Clients' rows follow one another, with their own tokens and labels, of whichever table."""
    whole, other = table(), table()
    parts = [whole.select([4]), whole.select([]), whole.select([0, 4])]
    assert written(Encoded.joined(parts)) == [[11], [5, 6], [11]]
    assert Encoded.joined(parts).inputs is whole.inputs
    other.inputs["input_ids"] += 100
    other.cut[3] = True
    both = Encoded.joined([whole.select([4, 0]), other.select([3, 1])])
    assert written(both) == [[11], [5, 6], [108, 109, 110], [107]]
    assert both.labels.tolist() == [4, 0, 3, 1] and both.truncated == 1
