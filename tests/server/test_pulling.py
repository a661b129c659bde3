"""Replies that the superlink hands over: a broken one, or one that is not its sender's, is an error
of that sender, and the others arrive."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import Message
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_id,
    get_object_tree,
)
from flwr.superlink.grid.http_grid import HttpGrid

from fedlora import wire
from fedlora.wire import Parcel
from server.pulling import pull


class Superlink:
    """The runtime interface of a superlink that nodes have uploaded replies to."""

    def __init__(self) -> None:
        self.replies: list[tuple[Any, ObjectTree]] = []
        self.objects: dict[str, bytes] = {}
        self.confirmed: list[str] = []

    def put(self, node: int, client: str, said_node: int | None = None) -> Message:
        """A reply by a node, which says in it that it is `said_node`."""
        asked = Message(wire.pack(Parcel()), node, "train")
        asked.metadata.__dict__["_message_id"] = f"asked {node}"
        reply = Message(wire.pack(Parcel({"client": client})), reply_to=asked)
        proto = message_to_proto(reply)
        if said_node:
            reply.metadata.__dict__["_src_node_id"] = said_node
        proto.metadata.message_id = reply.object_id
        self.objects |= {k: v.deflate() for k, v in get_all_nested_objects(reply).items()}
        self.replies.append((proto, get_object_tree(reply)))
        return reply

    def break_up(self, reply: Message, kind: str) -> None:
        """Put in place of a part what passes the superlink's own checks, and is no such part."""
        record = reply.content["facts"]
        old = record.object_id
        body = {"json": b"{no json", "type": json.dumps([1]).encode()}[kind]
        content = b"ConfigRecord  %d\x00" % len(body) + body
        self.objects[old] = content
        assert get_object_id(content)

    def PullMessages(self, request: Any) -> Any:
        asked = set(request.message_ids)
        chosen = [r for r in self.replies if r[0].metadata.reply_to_message_id in asked]
        messages, trees = zip(*chosen, strict=True)
        return SimpleNamespace(messages_list=messages, message_object_trees=trees)

    def PullObject(self, request: Any) -> Any:
        content = self.objects.get(request.object_id)
        found = content is not None
        return SimpleNamespace(object_found=found, object_available=found, object_content=content)

    def ConfirmMessageReceived(self, request: Any) -> None:
        self.confirmed.append(request.message_object_id)


class Grid(HttpGrid):
    def __init__(self, superlink: Superlink) -> None:
        self.superlink, self.node = superlink, Node(node_id=1)
        self._run = SimpleNamespace(run_id=1)  # type: ignore[assignment]

    @property
    def run(self) -> Any:
        return self._run

    @property
    def _runtime_client(self) -> Any:
        return self.superlink


@pytest.fixture
def superlink(monkeypatch: pytest.MonkeyPatch) -> Superlink:
    from flwr.supercore.task_identity import TaskIdentity

    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    return Superlink()


def pulled(superlink: Superlink, *nodes: int) -> dict[int, str]:
    """By node, the client of its reply or the reason why there is none."""
    found = pull(Grid(superlink), [f"asked {node}" for node in nodes])
    return {
        m.metadata.src_node_id: m.error.reason
        if m.has_error()
        else str(wire.unpack(m.content).facts["client"])
        for m in found
    }


def test_whole_replies_arrive_as_they_were(superlink: Superlink) -> None:
    """With the superlink's word for what they answer, and confirmed."""
    replies = [superlink.put(2, "a"), superlink.put(3, "b")]
    assert pulled(superlink, 2, 3) == {2: "a", 3: "b"}
    assert superlink.confirmed == [r.object_id for r in replies]


@pytest.mark.parametrize("kind", ["json", "type"])
def test_a_broken_reply_is_its_senders_alone(superlink: Superlink, kind: str) -> None:
    """Flower's readers raise whatever they like over it."""
    superlink.put(2, "a")
    superlink.break_up(superlink.put(3, "b" * 3), kind)
    superlink.put(4, "c")
    found = pulled(superlink, 2, 3, 4)
    assert (found[2], found[4]) == ("a", "c") and "malformed" in found[3]


def test_a_part_that_is_missing_is_its_senders_alone(superlink: Superlink) -> None:
    """It is lost on its way, and may be asked for again."""
    superlink.put(2, "a")
    reply = superlink.put(3, "b")
    del superlink.objects[reply.content["facts"].object_id]
    found = pulled(superlink, 2, 3)
    assert found[2] == "a" and "did not arrive whole" in found[3]


def test_nobody_speaks_for_another(superlink: Superlink) -> None:
    """What the upload says of its sender is not believed over the superlink's word."""
    superlink.put(2, "a")
    superlink.put(3, "a", said_node=2)
    found = pulled(superlink, 2, 3)
    assert found[2] == "a" and "malformed" in found[3]
