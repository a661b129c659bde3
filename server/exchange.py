"""Messages out and replies in, each wait with a deadline."""

import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from flwr.app import Message
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid

from fedlora import wire
from fedlora.wire import Parcel, WireError

log = logging.getLogger("fedlora.server")
LOST = {
    ErrorCode.MESSAGE_UNAVAILABLE,
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
    ErrorCode.NODE_UNAVAILABLE,
    ErrorCode.CLIENT_APP_CRASHED,
}
FASTEST, SLOWEST = 0.002, 1.0  # seconds between polls of the grid


@dataclass(frozen=True)
class Answer:
    """One node's reply: a parcel, or the reason why there is none."""

    node: int
    parcel: Parcel | None
    reason: str = ""
    malformed: bool = False
    lost: bool = False  # on its way: the node or its process ended, the client itself did not fail


def message(parcel: Parcel, node: int, kind: str, group: str, ttl: float) -> Message:
    return Message(wire.pack(parcel), node, kind, group_id=group, ttl=ttl)


class Exchange:
    """Pushes messages and yields replies as they come; more may be pushed while it runs."""

    def __init__(self, grid: Grid, deadline: float) -> None:
        self.grid = grid
        self.until = time.monotonic() + deadline
        self._open: dict[str, int] = {}
        self._unsent: list[int] = []

    def push(self, messages: Iterable[Message]) -> None:
        """Flower gives None for a message that it could not send, and nothing if it sent none."""
        batch = list(messages)
        ids: list[str | None] = [*self.grid.push_messages(batch)] or [None] * len(batch)
        for m, id in zip(batch, ids, strict=True):
            if id:
                self._open[id] = m.metadata.dst_node_id
            else:
                self._unsent.append(m.metadata.dst_node_id)

    def answers(self) -> Iterator[Answer]:
        """Every node's answer once; those that are still missing at the deadline say so."""
        pause = FASTEST
        while self._open or self._unsent:
            while self._unsent:
                yield Answer(self._unsent.pop(), None, "the message to it could not be sent")
            replies = list(self.grid.pull_messages(list(self._open)))
            for reply in replies:
                about = reply.metadata
                node = self._open.pop(about.reply_to_message_id, None)
                if node is None:
                    log.warning("node %d: a reply that nobody waits for", about.src_node_id)
                elif about.src_node_id not in _may_answer(node, reply):
                    yield Answer(node, None, "another node answered in its place", malformed=True)
                else:
                    yield _answer(node, reply)
            pause = FASTEST if replies else min(2 * pause, SLOWEST)
            if time.monotonic() > self.until:
                missing, self._open = self._open, {}
                for node in missing.values():
                    yield Answer(node, None, "no reply before the deadline")
            elif not replies and self._open:
                time.sleep(pause)


def _may_answer(node: int, reply: Message) -> set[int]:
    """Whose reply counts: that of the node itself, or the superlink's word that there is none."""
    return {node, SUPERLINK_NODE_ID} if reply.has_error() else {node}


def _answer(node: int, reply: Message) -> Answer:
    if reply.has_error():
        reason = reply.error.reason or f"error {reply.error.code}"
        return Answer(node, None, reason, lost=reply.error.code in LOST)
    try:
        return Answer(node, wire.unpack(reply.content))
    except WireError as e:
        return Answer(node, None, str(e), malformed=True)
