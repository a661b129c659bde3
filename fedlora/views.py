"""A view is what a client's adapter is to be; only what the client lacks of it is sent.

Server and client both remember the view that crossed last: the server its manifest (digests and
shapes), the client the tensors. Residual factors grow by appending, so of P (columns) and Q (rows)
only the tail is sent where the beginning is known. Their digest is one of the digests of their
blocks, BLOCK columns or rows each: of what has grown, only the blocks from the seam on are read.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from fedlora import profile
from fedlora.tensors import Tensors, part_of

GROWS_ALONG = {"P": 1, "Q": 0}
BLOCK = 64  # columns of P, rows of Q

Manifest = dict[str, tuple[str, list[int]]]  # name -> digest, shape
Blocks = list[str]  # digests of a tensor's blocks in order; of one that does not grow, its own
Reader = Callable[[str, Tensor], Blocks]  # of a tensor by its name


@dataclass(frozen=True)
class Patch:
    """The way from a held view to a new one: whole tensors, tails to append, names to drop. What
    none of them names stays as it is."""

    tensors: Tensors
    drop: list[str] = field(default_factory=list)
    tails: list[str] = field(default_factory=list)


def blocks(name: str, tensor: Tensor, known: Sequence[str] = ()) -> Blocks:
    """The digests of a tensor's blocks: of the first ones, where they are `known`, as they are."""
    axis = _axis(name, tensor)
    if axis is None:
        return [_hashed(tensor)]
    length = tensor.shape[axis]
    starts = range(len(known) * BLOCK, length, BLOCK)
    return [
        *known,
        *(_hashed(tensor.narrow(axis, i, min(BLOCK, length - i))) for i in starts),
    ]


def digest(blocks: Blocks) -> str:
    """16 bytes in hexadecimal for a whole tensor."""
    return blocks[0] if len(blocks) == 1 else _blake("".join(blocks).encode())


@profile.timed("encode")
def manifest(view: Tensors, read: Reader = blocks) -> Manifest:
    return {name: (digest(read(name, t)), list(t.shape)) for name, t in view.items()}


@profile.timed("encode")
def difference(view: Tensors, target: Manifest, held: Manifest, read: Reader = blocks) -> Patch:
    """What to send so that a client with `held` has `view`, whose manifest is `target`."""
    tensors: Tensors = {}
    tails: list[str] = []
    for name, tensor in view.items():
        if name not in held:
            tensors[name] = tensor
        elif held[name] == target[name]:
            continue
        elif had := _begins_with(name, tensor, held[name], read):
            axis = GROWS_ALONG[part_of(name)]
            tensors[name] = tensor.narrow(axis, had, tensor.shape[axis] - had)
            tails.append(name)
        else:
            tensors[name] = tensor
    return Patch(tensors, [name for name in held if name not in view], tails)


def patched(held: Tensors, patch: Patch) -> Tensors:
    """The new view. Raises KeyError where what a tail is to follow is not held."""
    view = {name: t for name, t in held.items() if name not in patch.drop}
    for name, tensor in patch.tensors.items():
        if name in patch.tails:
            tensor = torch.cat([held[name], tensor], GROWS_ALONG[part_of(name)])
        view[name] = tensor
    return view


@profile.timed("encode")
def fingerprint(entries: Manifest) -> str:
    """One digest for a whole view, by which client and server agree that it arrived."""
    text = "\n".join(f"{name} {entries[name]}" for name in sorted(entries))
    return _blake(text.encode())


@dataclass(frozen=True)
class View:
    """Tensors that a client holds, with the digests of their blocks."""

    tensors: Tensors
    blocks: Mapping[str, Blocks]

    @classmethod
    @profile.timed("encode")
    def of(cls, tensors: Tensors) -> "View":
        return cls(tensors, {name: blocks(name, t) for name, t in tensors.items()})

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(manifest(self.tensors, lambda name, _: self.blocks[name]))

    @profile.timed("encode")
    def patched(self, patch: Patch) -> "View":
        """The new view, of which only what came is read, and a tail's seam. Raises KeyError where
        what a tail is to follow is not held."""
        tensors = patched(self.tensors, patch)
        read = {name: self.blocks[name] for name in tensors if name not in patch.tensors}
        for name in patch.tensors:
            known = self._whole_blocks(name) if name in patch.tails else []
            read[name] = blocks(name, tensors[name], known)
        return View(tensors, read)

    def _whole_blocks(self, name: str) -> Blocks:
        axis = _axis(name, self.tensors[name])
        return [] if axis is None else self.blocks[name][: self.tensors[name].shape[axis] // BLOCK]


def _axis(name: str, tensor: Tensor) -> int | None:
    """Along which it grows, if it is a matrix that does."""
    return GROWS_ALONG.get(part_of(name)) if tensor.dim() == 2 else None


def _begins_with(name: str, tensor: Tensor, held: tuple[str, list[int]], read: Reader) -> int:
    """How many columns or rows a client holds already of a tensor that has grown; else 0."""
    (known, shape), axis = held, _axis(name, tensor)
    if axis is None or len(shape) != 2 or shape[1 - axis] != tensor.shape[1 - axis]:
        return 0
    if not shape[axis] < tensor.shape[axis]:
        return 0
    head, whole = tensor.narrow(axis, 0, shape[axis]), shape[axis] // BLOCK
    found = blocks(name, head, read(name, tensor)[:whole])
    return shape[axis] if digest(found) == known else 0


def _hashed(tensor: Tensor) -> str:
    """BLAKE2b over the values."""
    data = tensor.detach().contiguous().cpu().view(-1).view(torch.uint8).numpy()
    return _blake(data.data)


def _blake(data: bytes | memoryview) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
