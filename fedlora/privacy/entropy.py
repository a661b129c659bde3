"""Random numbers that protect: every draw comes from a secret, through a cipher.

A release has one secret of 32 bytes, which is used once. Each purpose of it (the rows of a step,
8,192 coordinates of the noise of a tensor in a step, …) has a key of its own, and ChaCha20's stream
under that key gives the draws: whoever sees all draws of one purpose learns nothing of another, nor
of the key. Torch's own generators would not do. Mersenne Twister's state follows from 20,000 draws,
and a part that has no gradient, as A while B = 0, shows its draws bare; Philox takes 64 bits for a
seed.

A normal is the sum of four, over two (Holohan and Braghin 2021, arXiv:2107.10138): an output in
floating point fits too many combinations of four for the gaps between possible outputs to tell the
noise from what it hides (Mironov 2012). They are made of 53-bit uniforms in float64 by

    z = ½ Σ_{k=1..4} sqrt(−2 ln u_k) cos 2π v_k,        and the same u, v with sin for its neighbour

(Box and Muller), of which each ends at 8.57 deviations. All is drawn on the CPU, so that a CPU and
a GPU get the same numbers.
"""

import hashlib
import json
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from torch import Tensor

SECRET = 32  # bytes
SUMMED = 4  # normals that one is made of
CHUNK = 2**13  # normals of one stream: a core's cache has room for them


def fresh() -> bytes:
    """A secret from the operating system, for one release."""
    return os.urandom(SECRET)


def insecure(seed: int, *path: object) -> bytes:
    """32 bytes in a secret's place, the same for the same seed and path, so that a run can be
    repeated to the bit. Anybody who knows or guesses the seed can take the noise off."""
    text = "\x1f".join(["insecure", str(seed), *map(str, path)])
    return hashlib.blake2b(text.encode(), digest_size=32).digest()


def uniforms(count: int, secret: bytes, *purpose: str | int) -> Tensor:
    """(count,) float64 in (0, 1], multiples of 2⁻⁵³; the same for the same secret and purpose."""
    return _uniforms(_Keystream(secret, purpose), count)


def normals(shape: Sequence[int], secret: bytes, *purpose: str | int) -> Tensor:
    """Standard normals of this shape, float64; the same for the same secret and purpose."""
    count = math.prod(shape)
    out = torch.empty(count, dtype=torch.float64)

    def fill(start: int) -> None:
        piece = out[start : start + CHUNK]
        stream = _Keystream(secret, (*purpose, start))
        piece.copy_(_normals(stream, len(piece) + len(piece) % 2)[: len(piece)])

    starts = range(0, count, CHUNK)
    if len(starts) > 1 < torch.get_num_threads():
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            [*pool.map(fill, starts)]
    else:
        [*map(fill, starts)]
    return out.view(tuple(shape))


class _Keystream:
    """ChaCha20 under the key of one purpose: blake2b, keyed with the secret, over its name."""

    def __init__(self, secret: bytes, purpose: Sequence[str | int]) -> None:
        name = json.dumps(purpose).encode()
        key = hashlib.blake2b(name, key=secret, digest_size=32, person=b"fedlora privacy").digest()
        # The nonce may be constant, as no key is used for two purposes.
        self._cipher = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor()

    def words(self, count: int) -> Tensor:
        """The next (count,) 64-bit words, as int64."""
        return torch.frombuffer(
            bytearray(self._cipher.update(bytes(8 * count))), dtype=torch.int64, count=count
        )


def _uniforms(stream: _Keystream, count: int) -> Tensor:
    if count == 0:
        return torch.empty(0, dtype=torch.float64)
    top = stream.words(count).bitwise_right_shift_(11).bitwise_and_(2**53 - 1)
    return top.double().add_(1).mul_(2.0**-53)


def _normals(stream: _Keystream, count: int) -> Tensor:
    """(count,), an even number."""
    u, v = _uniforms(stream, SUMMED * count).view(2, SUMMED, count // 2)
    radius = u.log().mul_(-2).sqrt_()
    angle = v.mul(2 * math.pi)
    pairs = torch.stack((angle.cos().mul_(radius).sum(0), angle.sin().mul_(radius).sum(0)))
    return pairs.view(count).mul_(SUMMED**-0.5)
