"""The most memory that stepping takes, of one contender at a time in a process of its own.

On the CPU that is the peak of the process's resident set, which never goes down: a contender in the
same process would hide in what the one before it took, and a smaller batch behind a larger. (The
kernel's ru_maxrss would not do, since a child starts with its parent's.) glibc is told to give each
larger tensor pages of its own and to take them back: by default freed pieces of its heap stay
resident, tens of MB that differ with the order of sizes and hide what tensors take. On a GPU it is
what torch's allocator gave out.
"""

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch

from fedlora.config import Config
from simulations.benchmarks.contenders import CONTENDERS, Workload

STATUS = Path("/proc/self/status")
STEPS = 2  # of each batch size
MB = 1e6
# Bytes; glibc reads them when a process starts, and setting them keeps it from adapting them.
GLIBC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def peaks(config: Config, device: str, sizes: Sequence[int]) -> dict[tuple[str, int], float]:
    """MB by contender and batch size, above what the process held after a first step of one row;
    nothing where the system does not tell."""
    if device == "cpu" and not STATUS.exists():
        return {}
    spawn = multiprocessing.get_context("spawn")
    found: dict[tuple[str, int], float] = {}
    with (
        environment(GLIBC),
        ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as pool,
    ):
        for name in CONTENDERS:
            rising = sorted(sizes)
            held = pool.submit(_peaks, name, config, device, rising).result()
            found |= {(name, rows): most for rows, most in zip(rising, held, strict=True)}
    return found


@contextmanager
def environment(given: dict[str, str]) -> Iterator[None]:
    """For processes started inside the block."""
    before = dict(os.environ)
    os.environ.update(given)
    try:
        yield
    finally:
        for key in given:
            del os.environ[key]
        os.environ.update(before)


def _peaks(name: str, config: Config, device: str, rising: Sequence[int]) -> list[float]:
    torch.set_num_threads(1)
    load = Workload(config, device)
    adapter = load.adapter()
    with CONTENDERS[name](load, adapter, 1) as step:
        step(load.batches(1, 1)[0])
    at_first, found = _now(device), []
    for rows in rising:
        with CONTENDERS[name](load, adapter, rows) as step:
            for batch in load.batches(rows, STEPS):
                step(batch)
        found.append((_most(device) - at_first) / MB)
    return found


def _now(device: str) -> float:
    return torch.cuda.memory_allocated() if device == "cuda" else status("VmRSS")


def _most(device: str) -> float:
    return torch.cuda.max_memory_allocated() if device == "cuda" else status("VmHWM")


def status(key: str) -> float:
    """Bytes, of a line such as `VmRSS:   1234 kB`."""
    lines = STATUS.read_text().splitlines()
    (found,) = (line.split()[1] for line in lines if line.startswith(f"{key}:"))
    return 1024 * float(found)
