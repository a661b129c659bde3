"""Replies from the superlink, each by itself.

Flower's own grid puts together all replies of a call from what nodes uploaded: one that cannot be
put together takes the others with it, which count as delivered by then. And it believes what the
uploaded message says of its sender and of what it answers, where the superlink knows better. Here a
reply that is broken, or not what the superlink took it for, is an error of its sender alone.
"""

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

from flwr.app import Error, Message, Metadata
from flwr.app.message import make_message
from flwr.common.constant import ErrorCode
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    inflate_object_from_contents,
    pull_objects,
)

if TYPE_CHECKING:
    from flwr.superlink.grid.http_grid import HttpGrid

SAME = ("run_id", "src_node_id", "reply_to_message_id")  # in the upload as the superlink has it


def pull(grid: Grid, ids: Sequence[str]) -> list[Message]:
    """The replies to these messages that are there."""
    return list(_pulled(grid, ids) if _http(grid) else grid.pull_messages(ids))


def _http(grid: Grid) -> "TypeGuard[HttpGrid]":
    """Whether it is Flower's. Its module takes a second to import, and whoever has such a grid did
    so."""
    module = sys.modules.get("flwr.superlink.grid.http_grid")
    return module is not None and isinstance(grid, module.HttpGrid)


def _pulled(grid: "HttpGrid", ids: Sequence[str]) -> Iterator[Message]:
    """As `HttpGrid.pull_messages`, over the same calls; whatever is wrong with the superlink itself
    is raised as there."""
    found = grid._runtime_client.PullMessages(PullAppMessagesRequest(message_ids=ids))
    for proto, tree in zip(found.messages_list, found.message_object_trees, strict=True):
        about = proto.metadata
        try:
            contents = _contents(grid, tree)
        except (ObjectPullError, RecursionError) as e:
            lost = ErrorCode.MESSAGE_UNAVAILABLE
            yield _broken(grid, about, lost, f"its reply did not arrive whole: {e}")
            continue
        confirmed = {"run_id": grid.run.run_id, "message_object_id": about.message_id}
        grid._runtime_client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(node=grid.node, **confirmed)
        )
        try:
            yield _message(about, contents)
        except Exception as e:  # whatever the parts make of Flower's readers
            why = f"its reply is malformed ({type(e).__name__})"
            yield _broken(grid, about, ErrorCode.UNKNOWN, why)


def _contents(grid: "HttpGrid", tree: Any) -> dict[str, bytes]:
    """The parts of a message by id. Raises ObjectPullError where one is missing."""
    return pull_objects(
        object_ids=[part.object_id for part in iterate_object_tree(tree)],
        pull_object_fn=make_pull_object_fn_protobuf(
            pull_object_protobuf=grid._runtime_client.PullObject,
            node=grid.node,
            run_id=grid.run.run_id,
        ),
    )


def _message(about: Any, contents: dict[str, bytes]) -> Message:
    """Raises anything where these parts are not that message."""
    message = inflate_object_from_contents(about.message_id, contents)
    if not isinstance(message, Message):
        raise TypeError(type(message).__name__)
    if any(getattr(message.metadata, key) != getattr(about, key) for key in SAME):
        raise ValueError("it says that it is another")
    message.metadata.__dict__["_message_id"] = about.message_id
    return message


def _broken(grid: "HttpGrid", about: Any, code: int, why: str) -> Message:
    """An error in place of a reply, from whom the superlink had it."""
    return make_message(
        metadata=Metadata(
            run_id=about.run_id,
            message_id="",
            src_node_id=about.src_node_id,
            dst_node_id=grid.node.node_id,
            reply_to_message_id=about.reply_to_message_id,
            group_id=about.group_id,
            created_at=about.created_at,
            ttl=about.ttl,
            message_type=about.message_type,
        ),
        error=Error(code=code, reason=why),
    )
