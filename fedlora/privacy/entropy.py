"""Generators that privacy's noise and sampling come from.

Torch's CPU generator keeps only the low 32 bits of a seed: whoever sees one noised update could try
all of them and take the noise off. Here its whole state is filled instead, from a secret.

What is not claimed: Mersenne Twister is no cryptographic generator (its state follows from 624
outputs that are known exactly; noise added to unknown gradients gives none of them away exactly),
and nothing here protects from floating-point or timing side channels (Mironov 2012). Normals in
float32 are made of 24-bit uniforms and end at 5.77 deviations on a CPU; float64's end at 8.57.

Torch's CPU state, 632 64-bit words: seed | left, seeded | next | 624 state words | cached normals.
"""

import hashlib

import torch
from torch import Tensor

_SIZE, _FIRST, _WORDS = 632, 3, 624
_HEADER = (1 << 32 | 1, 0)  # seeded, and one left: the next draw makes 624 fresh words


def generator(secret: bytes, name: str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator whose draws follow from all of `secret` and `name`, independent by name.

    CPU: all 19,937 bits of Mersenne Twister's state are expanded by SHAKE-256. Elsewhere: Philox,
    seeded with 64 bits of the same hash, as it takes no more. Raises RuntimeError if torch keeps
    its state otherwise than is known here.
    """
    digest = hashlib.shake_256(len(secret).to_bytes(8, "little") + secret + name.encode())
    made = torch.Generator(device)
    if made.device.type != "cpu":
        return made.manual_seed(int.from_bytes(digest.digest(8), "little"))
    words = torch.frombuffer(bytearray(digest.digest(4 * _WORDS)), dtype=torch.int32)
    state = _fresh(made)
    state.view(torch.int64)[_FIRST : _FIRST + _WORDS] = words.long() & 0xFFFFFFFF
    made.set_state(state)
    if not torch.equal(made.get_state(), state):
        raise _changed()
    return made


def insecure(seed: int, *path: object) -> bytes:
    """32 bytes in a secret's place, the same for the same seed and path, so that a run can be
    repeated to the bit. Anybody who knows or guesses the seed can take the noise off."""
    text = "\x1f".join(["insecure", str(seed), *map(str, path)])
    return hashlib.blake2b(text.encode(), digest_size=32).digest()


def _fresh(made: torch.Generator) -> Tensor:
    """A state just seeded, no normal cached, checked to have the layout that is known."""
    state = made.manual_seed(1).get_state()
    if state.dtype != torch.uint8 or state.numel() != 8 * _SIZE:
        raise _changed()
    fields = state.view(torch.int64).tolist()
    words, cached = fields[_FIRST : _FIRST + _WORDS], fields[_FIRST + _WORDS :]
    # Mersenne Twister's own initialisation from seed 1, the first words and the range of all.
    known = [1, 1812433254, 3713160357]
    if tuple(fields[1:3]) != _HEADER or words[:3] != known or any(cached) or max(words) >> 32:
        raise _changed()
    return state


def _changed() -> RuntimeError:
    return RuntimeError(
        f"torch {torch.__version__} keeps its generator's state in a layout that is not known "
        "here: secret noise cannot be drawn with it"
    )
