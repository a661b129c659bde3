"""Tensors cross as they are, and what is malformed is refused before it is read."""

import json
import math
import weakref

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto

from fedlora import wire
from fedlora.streams import stream
from fedlora.tensors import nbytes
from fedlora.wire import Parcel, WireError


def trip(parcel: Parcel) -> Parcel:
    """Through protobuf, as in a deployment."""
    proto = recorddict_to_proto(wire.pack(parcel))
    return wire.unpack(recorddict_from_proto(type(proto).FromString(proto.SerializeToString())))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 5), (7,), (), (0, 4), (2, 0), (2, 1, 3)])
def test_values_and_shapes_arrive(dtype, shape):
    """To the bit in the format they cross in, as fp32; bytes are counted in that format."""
    sent = torch.randn(shape, generator=stream(0, "x")).to(dtype)
    parcel = trip(Parcel(tensors={"layer.A": sent}))
    arrived = parcel.tensors["layer.A"]
    assert arrived.dtype == torch.float32 and arrived.shape == sent.shape
    assert torch.equal(arrived, sent.float())
    assert parcel.received == sent.numel() * sent.element_size()
    assert nbytes({"layer.A": sent}) == parcel.received


def test_special_values_arrive():
    """Infinities, NaN, minus zero and subnormals: what to do about them is not the wire's."""
    sent = torch.tensor([math.inf, -math.inf, math.nan, -0.0, 1e-45])
    arrived = trip(Parcel(tensors={"x": sent})).tensors["x"]
    assert torch.equal(arrived.view(torch.int32), sent.view(torch.int32))


def test_memory_that_is_not_contiguous_arrives_in_order():
    """A transposed or sliced tensor is what it looks like."""
    whole = torch.arange(12.0).view(3, 4)
    for sent in (whole.T, whole[:, 1:3], whole[::2]):
        assert torch.equal(trip(Parcel(tensors={"x": sent})).tensors["x"], sent)


def test_facts_and_metrics_arrive():
    """Numbers, texts, truth values and lists of one kind, empty ones too."""
    facts = {"n": 3, "x": 0.5, "s": "text", "b": True, "list": ["a", "b"], "none": []}
    parcel = trip(Parcel(facts, {}, {"loss": 0.25, "rows": 3}))
    assert parcel.facts == facts
    assert parcel.metrics == {"loss": 0.25, "rows": 3.0}


def test_trained_parts_alone_are_rounded():
    """Frozen parts and residuals cross in fp32 whatever the format of the rest."""
    tensors = {f"layer.{part}": torch.full((2, 2), 1 / 3) for part in "ABPQD"}
    found = wire.encode(tensors, torch.bfloat16, {"A", "B"})
    dtypes = {name[-1]: t.dtype for name, t in found.items()}
    assert dtypes == {
        "A": torch.bfloat16, "B": torch.bfloat16,
        "P": torch.float32, "Q": torch.float32, "D": torch.float32,
    }  # fmt: skip


def record(**change) -> RecordDict:
    """A message with one array of which something is changed."""
    fields = {"dtype": "float32", "shape": (2, 3), "stype": wire.RAW, "data": bytes(24)} | change
    content = wire.pack(Parcel())
    content["tensors"] = ArrayRecord({"layer.A": Array(**fields)})
    return content


@pytest.mark.parametrize(
    "change",
    [
        {"data": bytes(23)},
        {"data": bytes(28)},
        {"data": b""},
        {"shape": (2, 4)},
        {"shape": (-2, -3)},
        {"shape": (2**40, 2**40)},
        {"shape": ()},
        {"dtype": "float64"},
        {"dtype": "object"},
        {"dtype": "float16"},
        {"stype": "numpy.ndarray"},
        {"stype": "torch.pickle"},
    ],
)
def test_a_malformed_array_is_refused(change):
    """Its name is said; nothing of it is read, let alone unpickled."""
    assert wire.unpack(record()).tensors["layer.A"].shape == (2, 3)
    with pytest.raises(WireError, match=r"layer\.A"):
        wire.unpack(record(**change))


@pytest.mark.parametrize("name", ["tensors", "facts", "metrics"])
def test_a_message_without_its_records_is_refused(name):
    """A record that is missing, or of another kind, is named."""
    content = wire.pack(Parcel())
    del content[name]
    with pytest.raises(WireError, match=name):
        wire.unpack(content)
    content[name] = ConfigRecord() if name != "facts" else MetricRecord()
    with pytest.raises(WireError, match=name):
        wire.unpack(content)


def test_metrics_that_are_no_finite_number_are_left_out():
    """So that metrics.jsonl is JSON and no mean is spoilt."""
    content = wire.pack(Parcel())
    content["metrics"] = MetricRecord({"a": math.nan, "b": math.inf, "c": [1.0, 2.0], "d": 2})
    metrics = wire.unpack(content).metrics
    assert metrics == {"d": 2.0}
    json.dumps(metrics, allow_nan=False)


def test_fp32_is_viewed_and_not_copied():
    """A tensor lies in the message's own bytes; the same array under two names is two tensors, so
    that what is done to one is not done to the other."""
    content = wire.pack(Parcel(tensors={"x": torch.arange(6.0).view(2, 3)}))
    record = content["tensors"]
    record["y"] = record["x"]
    x, y = wire.unpack(content).tensors.values()
    start = np.frombuffer(record["x"].data, np.uint8).ctypes.data
    assert x.data_ptr() == start != y.data_ptr()
    assert torch.equal(x, y)


def test_arrays_are_used_again_for_the_same_values_alone() -> None:
    """Many clients in a row are sent the same tensors, and none another's."""
    arrays, same = wire.Arrays(), torch.arange(3.0)
    first = arrays({"x": same, "y": torch.zeros(2)})
    second = arrays({"x": same.detach(), "y": torch.ones(2)})
    assert second["x"] is first["x"] and second["y"].data == torch.ones(2).numpy().tobytes()
    same.add_(1)
    assert arrays({"x": same})["x"].data == same.numpy().tobytes()


def test_what_is_shared_is_made_once() -> None:
    """Whoever is sent something else in between; in the format of its part; and of what is one
    client's own nothing is kept."""
    same = torch.full((2,), 1 / 3)
    arrays = wire.Arrays(torch.bfloat16, {"A"}, [same])
    first = arrays({"x.A": same, "x.P": same})
    kept = weakref.ref(own := torch.ones(3))
    arrays({"y.A": own})
    del own
    arrays({})
    assert kept() is None
    second = arrays({"z.A": same, "z.P": same})
    assert [second["z.A"] is first["x.A"], second["z.P"] is first["x.P"]] == [True, True]
    assert (len(first["x.A"].data), len(first["x.P"].data)) == (4, 8)
    encoded = wire.encode({"x.A": same, "x.P": same}, torch.bfloat16, {"A"})
    assert wire.size({"x.A": same, "x.P": same}, torch.bfloat16, {"A"}) == 12 == nbytes(encoded)
