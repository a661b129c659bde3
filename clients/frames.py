"""Flower's messages as pieces of bytes, for a pipe or a call that takes one piece at a time.

Protobuf holds no more than 2 GiB, and copies what it is given. So a message goes as its head, which
is protobuf with a number in place of each array's bytes, and the bytes beside it: those that
several messages share go once. The first piece is a JSON object.

    about      whatever belongs to the messages
    heads      how many messages there are
    sizes      bytes of each head, then of each array's data

The others are those bytes one after another, at most PIECE at a time.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

from flwr.app import ArrayRecord, Message, RecordDict
from flwr.app.message import make_message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as Proto
from flwr.proto.recorddict_pb2 import Array as ProtoArray

from clients.channel import PIECE


def cut(about: Any, messages: Sequence[Message]) -> Iterator[bytes]:
    """The pieces of some messages, and of what belongs to them."""
    data: list[bytes] = []
    numbers: dict[int, int] = {}  # by identity, of the bytes in `data`
    heads = [_head(message, data, numbers) for message in messages]
    parts = [*heads, *data]
    told = {"about": about, "heads": len(messages), "sizes": [len(part) for part in parts]}
    return chain([json.dumps(told).encode()], _pieces(parts))


def whole(pieces: Iterable[bytes]) -> tuple[Any, list[Message], int]:
    """What belongs to the messages, the messages, and the bytes that they came in. The rest of the
    pieces is left. Raises ValueError and the like for what `cut` did not make."""
    rest = iter(pieces)
    told = json.loads(next(rest))
    heads, sizes = told["heads"], told["sizes"]
    parts = _parts(rest, sizes)
    messages = [_message(head, parts[heads:]) for head in parts[:heads]]
    return told["about"], messages, sum(sizes)


def _head(message: Message, data: list[bytes], numbers: dict[int, int]) -> bytes:
    """The message without its arrays' bytes, which join `data` where they are not there yet."""
    if message.has_error():
        return bytes(message_to_proto(message).SerializeToString())
    bare = RecordDict()
    for key, other in message.content.items():
        if not isinstance(other, ArrayRecord):
            bare[key] = other
    proto = message_to_proto(make_message(metadata=message.metadata, content=bare))
    for key, record in message.content.array_records.items():
        items = proto.content.items.add(key=key).array_record
        items.SetInParent()  # an empty one is there too
        for name, array in record.items():
            number = numbers.setdefault(id(array.data), len(data))
            if number == len(data):
                data.append(array.data)
            items.items.add(
                key=name,
                value=ProtoArray(
                    dtype=array.dtype,
                    shape=array.shape,
                    stype=array.stype,
                    data=number.to_bytes(8, "little"),
                ),
            )
    return bytes(proto.SerializeToString())


def _message(head: bytes, data: Sequence[bytes]) -> Message:
    message = message_from_proto(Proto.FromString(head))
    if message.has_content():
        for record in message.content.array_records.values():
            for array in record.values():
                array.data = data[int.from_bytes(array.data, "little")]
    return message


def _pieces(parts: Iterable[bytes]) -> Iterator[bytes]:
    """Small ones together, large ones cut."""
    waiting: list[memoryview] = []
    room = PIECE
    for part in parts:
        view = memoryview(part)
        while len(view):
            waiting.append(view[:room])
            view, room = view[room:], room - len(waiting[-1])
            if not room:
                yield b"".join(waiting)
                waiting, room = [], PIECE
    if waiting:
        yield b"".join(waiting)


def _parts(pieces: Iterator[bytes], sizes: Sequence[int]) -> list[bytes]:
    """What was cut, whole again: `sizes` bytes each."""
    left = memoryview(b"")
    found: list[bytes] = []
    for size in sizes:
        taken: list[memoryview] = []
        while size:
            left = left if len(left) else memoryview(next(pieces))
            taken.append(left[:size])
            left, size = left[size:], size - len(taken[-1])
        found.append(b"".join(taken))
    return found
