"""Flower's records to and from tensors: the only file of the library that imports Flower.

A tensor crosses as its raw little-endian bytes with its dtype and shape beside them, since numpy's
format knows no bfloat16 and costs 128 bytes a tensor. Nothing is unpickled; what arrives is checked
against its own header before a byte is read. An fp32 tensor that arrives is a view of the message's
own bytes, since to copy an update costs more than to add it to a mean: nobody may write into it.
"""

import math
import sys
import warnings
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedlora import profile
from fedlora.tensors import Tensors, part_of, place
from fedlora.untrusted import named, plain

RAW = "raw"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
NAMES = {dtype: name for name, dtype in DTYPES.items()}

assert sys.byteorder == "little", "tensors cross the wire as little-endian bytes"
# Torch has no read-only tensors and says so, once, of a view of a message's bytes.
warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)

NAME = 512  # most characters of a tensor's name
DIMENSIONS = 8  # most of a tensor
ENTRIES = 1 << 48  # most of a tensor, where each dimension counts at least one

R = TypeVar("R", ArrayRecord, ConfigRecord, MetricRecord)
Facts = dict[str, Any]  # int, float, str, bool, bytes or a list of one of them


class WireError(Exception):
    """A record that is not what it says it is."""


@dataclass
class Parcel:
    """What crosses in one message: tensors, facts (names, numbers, lists of them), metrics."""

    facts: Facts = field(default_factory=dict)
    tensors: Tensors = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    received: int = 0  # bytes of the tensors as they came


@profile.timed("encode")
def encode(tensors: Tensors, dtype: torch.dtype, parts: Collection[str]) -> Tensors:
    """The tensors in the formats they cross in: `dtype` for the named parts, fp32 for the rest."""
    return {k: t.to(dtype if part_of(k) in parts else torch.float32) for k, t in tensors.items()}


def size(tensors: Tensors, dtype: torch.dtype, parts: Collection[str]) -> int:
    """The bytes that `encode` makes of them."""
    formats = {k: dtype if part_of(k) in parts else torch.float32 for k in tensors}
    return sum(t.numel() * formats[k].itemsize for k, t in tensors.items())


class Arrays:
    """Tensors as Flower's arrays, in the formats they cross in (see `encode`). What is made of a
    tensor is used again for all who are sent it. That of `shared` ones is kept as long as this
    lives; that of others for the next call alone, as it may be one client's.

    It holds on to the tensors: else other values might come to lie in their place.
    """

    def __init__(
        self,
        dtype: torch.dtype | None = None,
        parts: Collection[str] = (),
        shared: Iterable[torch.Tensor] = (),
    ) -> None:
        self._dtype, self._parts = dtype, parts
        self._shared = {place(t): t for t in shared}
        self._made: dict[tuple[object, ...], tuple[torch.Tensor, Array]] = {}

    @profile.timed("encode")
    def __call__(self, tensors: Tensors) -> dict[str, Array]:
        """Raises KeyError on a dtype that does not travel."""
        keys, found = {}, {}
        for name, t in tensors.items():
            dtype = self._format(name, t)
            keys[name] = key = dtype, *place(t)
            found[key] = self._made.get(key) or (t, _array(t.to(dtype)))
        self._made = {k: x for k, x in self._made.items() if k[1:] in self._shared} | found
        return {name: found[key][1] for name, key in keys.items()}

    def _format(self, name: str, t: torch.Tensor) -> torch.dtype:
        if self._dtype is None:
            return t.dtype
        return self._dtype if part_of(name) in self._parts else torch.float32


def _array(t: torch.Tensor) -> Array:
    return Array(
        dtype=NAMES[t.dtype],
        shape=tuple(t.shape),
        stype=RAW,
        data=t.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes(),
    )


@profile.timed("encode")
def pack(parcel: Parcel, arrays: dict[str, Array] | None = None) -> RecordDict:
    """A parcel as Flower's records. Raises KeyError on a dtype that does not travel.

    Args:
        arrays: its tensors, where they are made already (see `Arrays`).
    """
    made = ArrayRecord()
    for name, array in (Arrays()(parcel.tensors) if arrays is None else arrays).items():
        made[name] = array  # itself: made of a dictionary, a record has others, hashed once more
    return RecordDict(
        {
            "tensors": made,
            "facts": ConfigRecord(parcel.facts),
            "metrics": MetricRecord(dict(parcel.metrics)),
        }
    )


@profile.timed("encode")
def unpack(content: RecordDict) -> Parcel:
    """Flower's records as a parcel in fp32, without metrics that are no finite number. Whatever
    somebody sent, raises nothing but WireError, naming the record or the tensor that is malformed.
    """
    arrays = _record(content, "tensors", ArrayRecord)
    metrics = _record(content, "metrics", MetricRecord)
    return Parcel(
        facts=dict(_record(content, "facts", ConfigRecord)),
        tensors=_tensors(arrays),
        metrics={k: x for k, v in metrics.items() if (x := _number(v)) is not None},
        received=sum(len(array.data) for array in arrays.values()),
    )


def _number(value: object) -> float | None:
    """A metric that is one finite number."""
    try:
        found = float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def _tensors(arrays: ArrayRecord) -> Tensors:
    tensors: Tensors = {}
    seen: set[int] = set()
    for name, array in arrays.items():
        tensor, data = _tensor(name, array), id(array.data)
        # Flower sends equal arrays once, and here they may be one object: each name has its own.
        tensors[name] = tensor.clone() if data in seen else tensor
        seen.add(data)
    return tensors


def _tensor(name: str, array: Array) -> torch.Tensor:
    if not named(name, NAME):
        raise WireError(f"{plain(name, 80)!r} is no name of a tensor")
    kind, stype, shape, data = array.dtype, array.stype, array.shape, array.data
    dtype = DTYPES.get(kind) if isinstance(kind, str) else None
    if stype != RAW or dtype is None:
        raise WireError(
            f"{name} is {plain(kind, 40)} as {plain(stype, 40)}, not one of {sorted(DTYPES)}"
        )
    if not (isinstance(data, bytes) and _is_shape(shape)):
        raise WireError(f"{name} has no shape that a tensor can have, or no bytes")
    count = math.prod(shape)
    if len(data) != count * dtype.itemsize:
        raise WireError(f"{name} has {len(data)} bytes, which is not {shape} {dtype}")
    if count == 0:
        return torch.zeros(shape)
    tensor = torch.frombuffer(data, dtype=dtype).view(shape)
    return tensor if dtype == torch.float32 else tensor.float()


def _is_shape(shape: object) -> bool:
    """Whether torch can have a tensor of this shape: with nothing in it too, its strides must fit
    an integer of 64 bits."""
    if not (isinstance(shape, tuple | list) and len(shape) <= DIMENSIONS):
        return False
    if not all(type(n) is int and n >= 0 for n in shape):
        return False
    return math.prod(max(n, 1) for n in shape) <= ENTRIES


def _record(content: RecordDict, name: str, kind: type[R]) -> R:
    record = content.get(name) if isinstance(content, RecordDict) else None
    if not isinstance(record, kind):
        raise WireError(f"the message's {name} are {type(record).__name__}, not {kind.__name__}")
    return record
