"""Flower's records to and from tensors: the only file of the library that imports Flower.

A tensor crosses as its raw little-endian bytes with its dtype and shape beside them, since numpy's
format knows no bfloat16 and costs 128 bytes a tensor. Nothing is unpickled; what arrives is checked
against its own header before a byte is read. An fp32 tensor that arrives is a view of the message's
own bytes, since to copy an update costs more than to add it to a mean: nobody may write into it.
"""

import math
import sys
import warnings
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedlora import profile
from fedlora.tensors import Tensors, part_of, place

RAW = "raw"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
NAMES = {dtype: name for name, dtype in DTYPES.items()}

assert sys.byteorder == "little", "tensors cross the wire as little-endian bytes"
# Torch has no read-only tensors and says so, once, of a view of a message's bytes.
warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)

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


class Arrays:
    """Tensors as Flower's arrays. Those of the call before are used again where tensors are the
    same values in memory, as many clients in a row are sent."""

    def __init__(self) -> None:
        self._latest: dict[tuple[object, ...], tuple[torch.Tensor, Array]] = {}

    def __call__(self, tensors: Tensors) -> dict[str, Array]:
        """Raises KeyError on a dtype that does not travel."""
        keys = {name: place(t) for name, t in tensors.items()}
        self._latest = {
            keys[name]: self._latest.get(keys[name]) or (t, _array(t))
            for name, t in tensors.items()
        }
        return {name: self._latest[key][1] for name, key in keys.items()}


def _array(t: torch.Tensor) -> Array:
    return Array(
        dtype=NAMES[t.dtype],
        shape=tuple(t.shape),
        stype=RAW,
        data=t.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes(),
    )


@profile.timed("encode")
def pack(parcel: Parcel, arrays: Arrays | None = None) -> RecordDict:
    """A parcel as Flower's records. Raises KeyError on a dtype that does not travel."""
    return RecordDict(
        {
            "tensors": ArrayRecord((arrays or Arrays())(parcel.tensors)),
            "facts": ConfigRecord(parcel.facts),
            "metrics": MetricRecord(dict(parcel.metrics)),
        }
    )


@profile.timed("encode")
def unpack(content: RecordDict) -> Parcel:
    """Flower's records as a parcel in fp32, without metrics that are no finite number. Raises
    WireError naming the record or the tensor that is malformed."""
    arrays = _record(content, "tensors", ArrayRecord)
    metrics = _record(content, "metrics", MetricRecord)
    return Parcel(
        facts=dict(_record(content, "facts", ConfigRecord)),
        tensors=_tensors(arrays),
        metrics={
            k: float(v)
            for k, v in metrics.items()
            if isinstance(v, int | float) and math.isfinite(v)
        },
        received=sum(len(array.data) for array in arrays.values()),
    )


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
    dtype = DTYPES.get(array.dtype)
    if array.stype != RAW or dtype is None:
        raise WireError(f"{name} is {array.dtype} as {array.stype}, not one of {sorted(DTYPES)}")
    count = math.prod(array.shape)
    if min(array.shape, default=1) < 0 or len(array.data) != count * dtype.itemsize:
        raise WireError(f"{name} has {len(array.data)} bytes, which is not {array.shape} {dtype}")
    if count == 0:
        return torch.zeros(array.shape)
    tensor = torch.frombuffer(array.data, dtype=dtype).view(array.shape)
    return tensor if dtype == torch.float32 else tensor.float()


def _record(content: RecordDict, name: str, kind: type[R]) -> R:
    record = content.get(name)
    if not isinstance(record, kind):
        raise WireError(f"the message's {name} are {type(record).__name__}, not {kind.__name__}")
    return record
