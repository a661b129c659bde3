"""Random numbers: independent seeded streams, and the global generator left as it was."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def derive(seed: int, *path: object) -> int:
    """A 63-bit seed that depends on the run's seed and on every element of `path`."""
    text = "\x1f".join([str(seed), *map(str, path)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def stream(seed: int, *path: object) -> torch.Generator:
    """A CPU generator for `path`: the same draws wherever and whenever it is asked for."""
    return torch.Generator().manual_seed(derive(seed, *path))


@contextmanager
def forked(seed: int, *path: object) -> Iterator[None]:
    """Seed torch's global generators inside the block only, the CPU's and those of the devices that
    this process works on, for code that can use no others (dropout, initialisers of libraries), and
    put them back as they were. A device that is not in use yet is left alone, since to ask for its
    generator is to take hold of it."""
    accelerator = torch.accelerator.current_accelerator() or torch.device("cuda")
    devices: Any = torch.get_device_module(accelerator)
    begun = getattr(devices, "is_initialized", devices.is_available)()  # Apple's has only the other
    count = devices.device_count() if begun else 0
    with torch.random.fork_rng(range(count), device_type=accelerator.type):
        torch.default_generator.manual_seed(derive(seed, *path))
        if count:
            getattr(devices, "manual_seed_all", devices.manual_seed)(derive(seed, *path))
        yield
