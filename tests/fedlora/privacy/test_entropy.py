"""Noise from the whole of a secret, by a generator whose state is what was put in."""

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from fedlora.privacy import entropy
from fedlora.privacy.entropy import generator, insecure

SECRET = bytes(range(32))


def draws(secret, name, n=16):
    return torch.randn(n, generator=generator(secret, name))


def raw(made, n):
    """n whole 32-bit outputs: torch makes a 64-bit draw of two, the first one on top."""
    pairs = torch.empty(n // 2, dtype=torch.int64).random_(-(2**63), None, generator=made)
    words = [(x >> shift) & 0xFFFFFFFF for x in pairs.tolist() for shift in (32, 0)]
    return np.array(words, dtype=np.uint64)


def test_draws_follow_from_secret_and_name(global_rng_untouched):
    """The same for the same, others for any other, also where secret and name run together."""
    made = [(SECRET, "a"), (SECRET, "b"), (SECRET, ""), (b"ab", "c"), (b"a", "bc"), (b"", "abc")]
    seen = [draws(*of) for of in made]
    for i, one in enumerate(seen):
        assert torch.equal(one, draws(*made[i]))
        assert not any(torch.equal(one, other) for other in seen[:i])


def test_every_bit_of_the_secret_counts():
    """Also in its upper half, where a seed of 32 bits would not see it."""
    assert (
        torch.Generator()
        .manual_seed(5)
        .get_state()[24:]
        .equal(torch.Generator().manual_seed(5 + 2**32).get_state()[24:])
    ), "torch takes whole seeds now: the module's reason is gone"
    seen = {tuple(draws(SECRET, "a").tolist())}
    for bit in range(256):
        flipped = bytearray(SECRET)
        flipped[bit // 8] ^= 1 << bit % 8
        seen.add(tuple(draws(bytes(flipped), "a").tolist()))
    assert len(seen) == 257


def test_the_state_put_in_is_drawn_from():
    """NumPy's Mersenne Twister, given the same hash's words, gives the same raw outputs, from the
    first one on and over several refills of its 624 words."""
    import hashlib

    stream = hashlib.shake_256((32).to_bytes(8, "little") + SECRET + b"noise").digest(4 * 624)
    other = np.random.MT19937(0)
    key = np.frombuffer(stream, dtype="<u4")
    other.state = {"bit_generator": "MT19937", "state": {"key": key, "pos": 624}}
    assert np.array_equal(raw(generator(SECRET, "noise"), 2000), other.random_raw(2000))


def test_no_normal_is_left_over():
    """Torch keeps every second normal for later: none of another state may come out first."""
    for n in (1, 2, 15, 16):
        assert torch.equal(draws(SECRET, "a", n)[:1], draws(SECRET, "a", 1)) or n >= 16
        torch.randn(1)  # leaves a cached one in the global generator, not in a new one
        assert torch.equal(draws(SECRET, "a", n), draws(SECRET, "a", n))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normals_are_normal(dtype):
    """Mean 0 and variance 1 within four standard errors of 10⁶ draws, and a Kolmogorov-Smirnov
    test; neighbours do not go together."""
    n = 10**6
    x = torch.randn(n, generator=generator(SECRET, "normal"), dtype=dtype).double()
    assert abs(x.mean()) < 4 / n**0.5
    assert abs(x.var() - 1) < 4 * (2 / n) ** 0.5
    assert abs((x[1:] * x[:-1]).mean()) < 4 / n**0.5
    assert kstest(x[: 10**5].numpy(), "norm").pvalue > 1e-3


def test_names_are_independent():
    """Noise and sampling of one secret go their own ways."""
    x, y = (draws(SECRET, name, 10**5).double() for name in ("noise", "sampling"))
    assert abs((x * y).mean()) < 4 / 10**2.5


@pytest.mark.parametrize("change", ["size", "header", "words", "cache", "lost"])
def test_a_changed_layout_is_an_error(monkeypatch, change):
    """If torch ever keeps its state otherwise: no noise rather than bad noise."""
    real = torch.Generator

    class Changed:
        def __init__(self, device):
            self.inner, self.device, self.put = real(device), torch.device("cpu"), None

        def manual_seed(self, seed):
            self.inner.manual_seed(seed)
            return self

        def set_state(self, state):
            self.put = None if change == "lost" else state.clone()

        def get_state(self):
            if self.put is not None:
                return self.put
            state = self.inner.get_state()
            fields = state.view(torch.int64)
            if change == "header":
                fields[2] = 7
            if change == "words":
                fields[3:627] = fields[3:627].roll(1)
            if change == "cache":
                fields[629] = 1
            return torch.cat([state, 0 * state[:8]]) if change == "size" else state

    monkeypatch.setattr(entropy.torch, "Generator", Changed)
    with pytest.raises(RuntimeError, match="layout"):
        generator(SECRET, "a")


def test_elsewhere_a_seed_of_64_bits(monkeypatch):
    """Philox takes no more: all 64 come from the hash."""
    seeds = []

    class Device:
        def __init__(self, device):
            self.device = torch.device(device)

        def manual_seed(self, seed):
            seeds.append(seed)
            return self

    monkeypatch.setattr(entropy.torch, "Generator", Device)
    for name in map(str, range(64)):
        generator(SECRET, name, "cuda")
    assert len(set(seeds)) == 64 and 2**63 < max(seeds) < 2**64
    assert np.bitwise_or.reduce(np.array(seeds, dtype=np.uint64)) == 2**64 - 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_cuda_device():
    """The same for the same secret and name, another for another name."""

    def drawn(name):
        return torch.randn(8, device="cuda", generator=generator(SECRET, name, "cuda"))

    assert torch.equal(drawn("a"), drawn("a")) and not torch.equal(drawn("a"), drawn("b"))


def test_insecure_bytes_are_those_of_the_seed():
    """For repeatable runs: 32 bytes by seed and path, pinned so that later versions agree."""
    assert insecure(1, "a", 2) == insecure(1, "a", 2)
    assert len({insecure(1), insecure(2), insecure(1, "a"), insecure(1, "a", "b")}) == 4
    assert len(insecure(0)) == 32
    assert insecure(0, "train", "ann", 1).hex()[:16] == "839f6756d78d2c38"
