"""Passes in which what is computed of a row depends on that row alone, to the bit.

In a pass every row is padded to the longest, and a kernel rounds by the shapes that it is given: a
row that comes, or is longer, moves the last bits of all others. That is nothing to an honest model.
But whoever chooses the adapter can make a model that turns last bits into other gradients, by which
one row moves the whole sum, and clipping each row bounds nothing. So over an owner's rows a pass
has rows of one width, and always as many: in the place of those that it lacks others are there
twice. Rows that fill their width have passes of their own, since a mask without zeros is no mask to
Transformers. Where ranks share rows out, a row's is found from its number alone.

Not covered: models that send tokens of all rows through the same expert, whose shapes are not ours.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from fedlora.parallel import ALONE, Pass, Ranks
from fedlora.pieces import padded

# Rows of a pass: more would mostly be there twice, fewer leave a device idle.
CORE, GPU = 2, 16


def passes(
    encoded: Any,
    indices: Sequence[int],
    most: int,
    device: torch.device,
    ranks: Ranks = ALONE,
) -> list[Pass]:
    """This rank's passes over its part of these rows.

    Args:
        most: the width beyond which no row is padded.
    """
    hands = ranks.by_number(indices)
    return ranks.even([[*_passes(encoded, hand, most, device)] for hand in hands])


def _passes(
    encoded: Any, indices: Sequence[int], most: int, device: torch.device
) -> Iterator[Pass]:
    size = CORE if device.type == "cpu" else GPU
    alike: dict[tuple[int, bool], list[int]] = {}
    for i in indices:
        length = encoded.length(i)
        width = min(padded(length), most)
        alike.setdefault((width, length == width), []).append(i)
    for _, rows in sorted(alike.items()):
        for start in range(0, len(rows), size):
            own = rows[start : start + size]
            yield own + own[:1] * (size - len(own)), len(own)
