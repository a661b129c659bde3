"""Messages cut into pieces and put together again, whatever their sizes."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given
from hypothesis import strategies as some

from clients import frames
from clients.frames import cut, whole


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Pieces of seven bytes, so that some hold many arrays and some arrays many pieces."""
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    monkeypatch.setattr(frames, "PIECE", 7)
    yield


def array(data: bytes) -> Array:
    return Array("float32", (len(data),), "raw", data)


def said(message: Message) -> Any:
    """All that a message says."""
    about = dict(vars(message.metadata))
    if message.has_error():
        return about, message.error.code, message.error.reason
    records = {k: dict(r) for k, r in message.content.items()}
    return about, {k: {n: _plain(x) for n, x in r.items()} for k, r in records.items()}


def _plain(x: object) -> object:
    return (x.dtype, x.shape, x.stype, x.data) if isinstance(x, Array) else x


datas = some.dictionaries(some.text(max_size=4), some.binary(max_size=30), max_size=4)


@given(some.lists(datas, max_size=3), some.integers(0, 9))
def test_what_is_cut_is_whole_again(contents: list[dict[str, bytes]], after: int) -> None:
    """Arrays, facts, metrics and errors; what follows in the same stream is left there."""
    messages = [
        Message(
            RecordDict(
                {
                    "tensors": ArrayRecord({k: array(d) for k, d in content.items()}),
                    "facts": ConfigRecord({"id": b"\x00\xff", "drop": ["a", "b"]}),
                    "metrics": MetricRecord({"loss": 0.5}),
                }
            ),
            node,
            "train",
        )
        for node, content in enumerate(contents, 1)
    ]
    messages += [Message(Error(2, "no"), reply_to=m) for m in messages[:1]]
    pieces = [*cut({"x": [1]}, messages), *[b"next"] * after]
    stream = iter(pieces)
    about, found, size = whole(stream)
    assert about == {"x": [1]} and [*stream] == [b"next"] * after
    assert [said(m) for m in found] == [said(m) for m in messages]
    assert all(len(piece) <= 7 for piece in pieces[1:])
    assert size == sum(json.loads(pieces[0])["sizes"])


def test_bytes_that_messages_share_go_once() -> None:
    """And are one object for all of them on the other side too."""
    shared = array(b"shared" * 10)
    messages = [Message(RecordDict({"t": ArrayRecord({"x": shared})}), n, "train") for n in (1, 2)]
    pieces = [*cut(None, messages)]
    assert b"".join(pieces[1:]).count(shared.data) == 1
    _, (one, two), _ = whole(pieces)
    assert one.content["t"]["x"].data is two.content["t"]["x"].data == shared.data


def test_no_piece_is_taken_for_another() -> None:
    """A stream that ends early is no message."""
    record = ArrayRecord({"x": array(bytes(99))})
    pieces = [*cut(None, [Message(RecordDict({"t": record}), 1, "query")])]
    with pytest.raises(StopIteration):
        whole(pieces[:-1])
