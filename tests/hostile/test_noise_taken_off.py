"""Promise: nobody can take the noise off what a client releases (docs/privacy.md).

With B = 0 all gradients of A are zero, so what is released of A is the generator's output, bare.
The state of Mersenne Twister, torch's generator on a CPU, has 19,937 bits, and every bit that it
gives is a linear function of them: the leading bits of its uniforms satisfy one recurrence of 135
terms, whatever the seed. So from the beginning of A the server foretells the rest of A, and the
noise on everything else.

Shapes: n coordinates of A as they are drawn; φ of degree 19,937.
"""

import numpy as np
import pytest
import torch

from fedlora.config import Train
from fedlora.config.privacy import Privacy
from fedlora.privacy.accounting import Mechanism
from fedlora.privacy.entropy import insecure
from fedlora.privacy.training import Updates

DEGREE, BLOCK = 19_937, 16
SIZE = 32_768  # coordinates of one layer's A; all layers of MiniLM at rank 8 have 36,864


@pytest.fixture(scope="module")
def taps() -> list[int]:
    """The exponents of φ, by Berlekamp and Massey from one bit of 40,000 outputs of any seed."""
    words = np.random.MT19937(1).random_raw(2 * DEGREE + 100)
    return [
        i for i, c in enumerate(reversed(bin(shortest(words >> np.uint64(31) & 1))[2:])) if c == "1"
    ]


def shortest(bits: np.ndarray) -> int:
    """The connection polynomial of the shortest linear recurrence of a sequence of bits, as the
    bits of a number: Σ c_j s_{i-j} = 0 with c_0 = 1."""
    c, b, length, gap, seen = 1, 1, 0, 1, 0
    for n, bit in enumerate(bits.tolist()):
        seen = seen << 1 | int(bit)  # s_{n-j} is its bit j
        if (c & seen).bit_count() & 1:
            c, previous = c ^ b << gap, c
            if 2 * length <= n:
                length, b, gap = n + 1 - length, previous, 0
        gap += 1
    assert length == DEGREE
    return c


def leading_bits(noise: torch.Tensor) -> np.ndarray:
    """The first bit of each uniform that Box and Muller's normals were made of, as torch lays them
    out: in blocks of 16, the first eight u₁ and the last eight u₂, z = sqrt(−2 ln(1 − u₁)) (cos,
    sin) 2πu₂."""
    z = noise.double().view(-1, 2, BLOCK // 2)
    radius = z.square().sum(1)
    first = 1 - torch.exp(-radius / 2)
    second = torch.atan2(z[:, 1], z[:, 0]) / (2 * torch.pi) % 1.0
    return (torch.stack((first, second), 1) >= 0.5).flatten().numpy()


def predicted(noise: torch.Tensor, taps: list[int]) -> float:
    """The share of leading bits beyond the first 19,937 that the recurrence tells right."""
    bits = leading_bits(noise).astype(np.uint8)
    told = np.zeros(len(bits) - DEGREE, dtype=np.uint8)
    for j in taps[1:]:  # s_i = Σ_{j>0} c_j s_{i-j}
        told ^= bits[DEGREE - j : len(bits) - j]
    return float((told == bits[DEGREE:]).mean())


def released(secret: bytes) -> torch.Tensor:
    """A after one private step of a client whose rows give A no gradient: a fp32 parameter that
    began at zero, moved by SGD with a learning rate of one."""
    A = torch.nn.Parameter(torch.zeros(64, SIZE // 64))
    updates = Updates(
        torch.optim.SGD([A], lr=1.0),
        rows=80,
        settings=Train(steps=1),
        privacy=Privacy(noise_multiplier=1.0, statistics=False),
        mechanism=Mechanism(1.0, 0.1, 1e-3),
        secret=secret,
    )
    rows = updates.draw()
    A.grad_sample = torch.zeros(len(rows), *A.shape)  # type: ignore[attr-defined]
    updates.take(last=True)
    return -A.detach() * 8  # of the expected rows


def test_the_attack_works_on_torchs_generator(taps: list[int]) -> None:
    """Else the next test would show nothing: the noise that torch draws is foretold, from fp32."""
    noise = torch.randn(SIZE, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    assert predicted(noise.float(), taps) > 0.999


def test_released_noise_does_not_foretell_itself(taps: list[int]) -> None:
    """What a client releases is told right no more often than by tossing a coin."""
    noise = released(insecure(1, "attacked")).flatten()
    assert float(noise.std()) == pytest.approx(1, rel=0.02)  # it is noise alone
    assert abs(predicted(noise, taps) - 0.5) < 0.02
