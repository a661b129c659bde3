"""What each way of the benchmark of exact methods takes at most, in a process of its own.

As in memory.py, which says why: on the CPU it is the peak of the process's resident set, and ways
follow each other by rising memory.
"""

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from simulations.benchmarks import memory
from simulations.benchmarks.factored import WAYS, WORKS, Layer, Uploads, draw
from simulations.benchmarks.timing import clock

SMALL = Layer(512, 384)  # what libraries allocate when first used is no way's
Key = tuple[str, str]  # of a work and a way
RISING: list[Key] = [(w.name, way) for way in WAYS for w in WORKS.values() if way in w.ways]


class Trial(NamedTuple):
    """A way run once in a process of its own."""

    seconds: float
    megabytes: float | None  # None where the system does not tell
    found: tuple[Any, Any] | None  # factors as numpy arrays, of works that decompose


def in_a_process(layer: Layer, device: str) -> dict[Key, Trial]:
    """All trials of a layer, in a process that is new."""
    spawn = multiprocessing.get_context("spawn")
    with memory.environment(memory.GLIBC), ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(trials, layer, device).result()


def trials(layer: Layer, device: str) -> dict[Key, Trial]:
    """Every way of every work once, by rising memory: a process's peak never goes down."""
    with threads(1):
        for work, way in RISING:
            WORKS[work].ways[way](SMALL, draw(SMALL, device))
        u = draw(layer, device)
        return {key: _trial(key, layer, u, device) for key in RISING}


def _trial(key: Key, layer: Layer, u: Uploads, device: str) -> Trial:
    work, way = key
    now, told = clock(device), device == "cuda" or memory.STATUS.exists()
    held, start = memory._now(device) if told else 0, now()
    found = WORKS[work].ways[way](layer, u)
    seconds = now() - start
    most = (memory._most(device) - held) / memory.MB if told else None
    if not WORKS[work].decomposes:
        return Trial(seconds, most, None)
    return Trial(seconds, most, (found[0].cpu().numpy(), found[1].cpu().numpy()))


@contextmanager
def threads(count: int) -> Iterator[None]:
    """torch's threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
