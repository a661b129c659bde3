"""Draws from a secret: the cipher's own, the same anywhere, independent by purpose, and normal."""

import hashlib
import json
import math
import os
from itertools import pairwise

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2, kstest

from fedlora.privacy import entropy
from fedlora.privacy.entropy import fresh, insecure, normals, uniforms

SECRET = bytes(range(32))


def words(count: int, *purpose: str | int) -> list[int]:
    """ChaCha20's 64-bit words, little-endian, under the key of a purpose."""
    name = json.dumps(purpose).encode()
    key = hashlib.blake2b(name, key=SECRET, digest_size=32, person=b"fedlora privacy").digest()
    stream = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor().update(bytes(8 * count))
    return np.frombuffer(stream, "<u8").tolist()


def test_uniforms_are_the_ciphers_words():
    """The upper 53 bits of each, plus one, of 2⁵³: never zero, exactly."""
    expected = [((word >> 11) + 1) / 2**53 for word in words(9, "rows", 3)]
    assert uniforms(9, SECRET, "rows", 3).tolist() == expected
    assert uniforms(0, SECRET, "rows", 3).tolist() == []


@given(st.sampled_from([(), (1,), (5,), (3, 4), (0, 7), (2, 1, 3)]))
def test_normals_are_sums_of_four_by_box_and_muller(shape):
    """½ Σ sqrt(−2 ln u) (cos, sin) 2πv, in Python's own floats."""
    count = math.prod(shape)
    pairs = (count + 1) // 2
    unit = [((word >> 11) + 1) / 2**53 for word in words(8 * pairs, "noise", 0, 1, 0)]
    u, v = unit[: 4 * pairs], unit[4 * pairs :]
    expected = [
        sum(
            math.sqrt(-2 * math.log(u[k * pairs + i])) * turn(2 * math.pi * v[k * pairs + i])
            for k in range(4)
        )
        / 2
        for turn in (math.cos, math.sin)
        for i in range(pairs)
    ]
    found = normals(shape, SECRET, "noise", 0, 1)
    assert found.shape == torch.Size(shape) and found.dtype == torch.float64
    np.testing.assert_allclose(found.flatten(), expected[:count], rtol=1e-9, atol=1e-9)


def test_draws_are_those_of_secret_and_purpose(global_rng_untouched):
    """The same for the same, others for any other, also where names run together."""
    purposes = [("a",), ("b",), ("a", 1), ("a", "1"), ("a1",), ("a", 1, 0), ()]
    seen = [normals((8,), secret, *p) for p in purposes for secret in (SECRET, SECRET[::-1])]
    again = [normals((8,), secret, *p) for p in purposes for secret in (SECRET, SECRET[::-1])]
    assert all(map(torch.equal, seen, again))
    assert len({tuple(x.tolist()) for x in seen}) == len(seen)


def test_every_bit_of_the_secret_counts():
    """No part of it is cut off, as a seed's would be."""
    seen = {tuple(uniforms(2, SECRET, "a").tolist())}
    for bit in range(256):
        flipped = bytearray(SECRET)
        flipped[bit // 8] ^= 1 << bit % 8
        seen.add(tuple(uniforms(2, bytes(flipped), "a").tolist()))
    assert len(seen) == 257


@pytest.mark.parametrize("count", [entropy.CHUNK, entropy.CHUNK + 1, 3 * entropy.CHUNK + 5])
def test_the_number_of_threads_changes_nothing(monkeypatch, count):
    """Each chunk is a stream of its own, whoever makes it."""
    made = []
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda n=threads: n)
        made.append(normals((count,), SECRET, "threads"))
    assert torch.equal(*made)
    assert torch.equal(made[0][: entropy.CHUNK], normals((entropy.CHUNK,), SECRET, "threads"))


def test_normals_are_normal():
    """Mean 0 and variance 1 within four standard errors of 10⁶ draws, chunks and their seams
    included; a Kolmogorov-Smirnov test; no neighbours, halves of a chunk or squares go together."""
    n = 10**6
    x = normals((n,), SECRET, "normal")
    assert abs(x.mean()) < 4 / n**0.5
    assert abs(x.var() - 1) < 4 * (2 / n) ** 0.5
    assert kstest(x[: 10**5].numpy(), "norm").pvalue > 1e-3
    for lag in (1, entropy.CHUNK // 2, entropy.CHUNK):
        for y in (x, x.square() - 1):
            assert abs((y[lag:] * y[:-lag]).mean()) < 4 * float(y.var()) / n**0.5


def test_tails_are_those_of_a_normal():
    """Of 10⁶ draws as many are above 3 and 4 as a normal has there (χ², p > .001)."""
    x = normals((10**6,), SECRET, "tails").abs()
    beyond = [math.erfc(edge / 2**0.5) for edge in (0.0, 1.0, 2.0, 3.0, 4.0, math.inf)]
    expected = [1e6 * (a - b) for a, b in pairwise(beyond)]
    counts = torch.histogram(x, torch.tensor([0.0, 1, 2, 3, 4, 9], dtype=torch.float64)).hist
    statistic = sum((c - e) ** 2 / e for c, e in zip(counts.tolist(), expected, strict=True))
    assert chi2.sf(statistic, len(counts) - 1) > 1e-3


def test_purposes_are_independent():
    """Noise and sampling of one secret go their own ways, as do steps and tensors."""
    purposes = (("noise", 0, 0), ("noise", 0, 1), ("noise", 1, 0), ("rows", 0))
    made = [normals((10**5,), SECRET, *purpose) for purpose in purposes]
    for i, x in enumerate(made):
        assert all(abs((x * y).mean()) < 4 / 10**2.5 for y in made[:i])


def test_a_secret_is_the_operating_systems(monkeypatch):
    """And nothing else's."""
    monkeypatch.setattr(os, "urandom", lambda n: bytes(range(n)))
    assert fresh() == SECRET


def test_insecure_bytes_are_those_of_the_seed():
    """For repeatable runs: 32 bytes by seed and path, pinned so that later versions agree."""
    assert insecure(1, "a", 2) == insecure(1, "a", 2)
    assert len({insecure(1), insecure(2), insecure(1, "a"), insecure(1, "a", "b")}) == 4
    assert len(insecure(0)) == 32
    assert insecure(0, "train", "ann", 1).hex()[:16] == "839f6756d78d2c38"
