"""Times of several contenders that do the same work, on a machine that does other work as well.

What else the machine does comes and goes, so that only neighbours in time can be compared: every
piece of work goes through all contenders before the next piece begins, and ratios are taken within
a piece. The order rotates, since who comes first may find other caches than who comes last.
"""

from collections.abc import Callable, Sequence
from statistics import median, quantiles
from time import perf_counter, process_time
from typing import NamedTuple, TypeVar

import torch

Work = TypeVar("Work")
Contender = Callable[[Work], int]  # does a piece of work, and says how many rows that were


class Spread(NamedTuple):
    """The quartiles of some values."""

    low: float
    median: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """The quartiles of at least one value."""
    return Spread(*(quantiles(values, n=4, method="inclusive") if values[1:] else [*values] * 3))


def ratio_of_medians(values: Sequence[float], base: Sequence[float]) -> float:
    return median(values) / median(base)


def alternated(
    contenders: Sequence[Contender[Work]],
    pieces: Sequence[Work],
    warm_up: int,
    clock: Callable[[], float],
) -> list[list[float]]:
    """Seconds a row, [contender][piece], without the first `warm_up` pieces.

    Args:
        clock: seconds, read once all that was begun is done.
    """
    seconds: list[list[float]] = [[] for _ in contenders]
    for i, piece in enumerate(pieces):
        for j in range(len(contenders)):
            k = (i + j) % len(contenders)
            start = clock()
            rows = contenders[k](piece)
            seconds[k].append((clock() - start) / rows)
    return [times[warm_up:] for times in seconds]


def clock(device: str) -> Callable[[], float]:
    """The clock for a device. On the CPU it is the process's own time there, which for one thread
    is what passes on a core that has nothing else to do; a GPU's work is waited for."""
    return _after_gpu if device == "cuda" else process_time


def _after_gpu() -> float:
    torch.cuda.synchronize()
    return perf_counter()
