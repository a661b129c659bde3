"""Random numbers: independent seeded streams, and the global generator left as it was."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

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
    """Seed torch's global generator inside the block only, for code that can use no other
    (dropout, initialisers of libraries), and put it back as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(derive(seed, *path))
        yield
