"""A view is what a client's adapter is to be; only what the client lacks of it is sent.

Server and client both remember the view that crossed last: the server its manifest (digests and
shapes), the client the tensors. Residual factors grow by appending, so of P (columns) and Q (rows)
only the tail is sent where the beginning is known.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedlora import profile
from fedlora.tensors import Tensors, part_of, place

GROWS_ALONG = {"P": 1, "Q": 0}

Manifest = dict[str, tuple[str, list[int]]]  # name -> digest, shape


@dataclass(frozen=True)
class Patch:
    """The way from a held view to a new one: whole tensors, tails to append, names to drop. What
    none of them names stays as it is."""

    tensors: Tensors
    drop: list[str] = field(default_factory=list)
    tails: list[str] = field(default_factory=list)


def digest(tensor: Tensor) -> str:
    """16 bytes of BLAKE2b over the values, in hexadecimal."""
    data = tensor.detach().contiguous().cpu().view(-1).view(torch.uint8).numpy()
    return hashlib.blake2b(data.data, digest_size=16).hexdigest()


class Digests:
    """`digest`, once for tensors that are the same values in memory, as many clients are sent.

    It holds on to the tensors: else other values might come to lie in their place.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], tuple[Tensor, str]] = {}

    def __call__(self, tensor: Tensor) -> str:
        if (key := place(tensor)) not in self._known:
            self._known[key] = tensor, digest(tensor)
        return self._known[key][1]


@profile.timed("encode")
def manifest(view: Tensors, digest: Callable[[Tensor], str] = digest) -> Manifest:
    return {name: (digest(t), list(t.shape)) for name, t in view.items()}


@profile.timed("encode")
def difference(
    view: Tensors,
    target: Manifest,
    held: Manifest,
    digest: Callable[[Tensor], str] = digest,
) -> Patch:
    """What to send so that a client with `held` has `view`, whose manifest is `target`."""
    tensors: Tensors = {}
    tails: list[str] = []
    for name, tensor in view.items():
        axis = GROWS_ALONG.get(part_of(name))
        if name not in held:
            tensors[name] = tensor
        elif held[name] == target[name]:
            continue
        elif axis is not None and _begins_with(tensor, held[name], axis, digest):
            had = held[name][1][axis]
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
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _begins_with(
    tensor: Tensor, held: tuple[str, list[int]], axis: int, digest: Callable[[Tensor], str]
) -> bool:
    known, shape = held
    if len(shape) != tensor.dim() or shape[axis] >= tensor.shape[axis]:
        return False
    head = tensor.narrow(axis, 0, shape[axis])
    return list(head.shape) == shape and digest(head) == known
