"""Messages out and replies in, each wait with a deadline."""

import logging
import math
import secrets
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice

from flwr.app import Array, Message
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid

from fedlora import profile, wire
from fedlora.untrusted import LONG, plain
from fedlora.wire import Parcel, WireError
from server.pulling import pull

log = logging.getLogger("fedlora.server")
LOST = {
    ErrorCode.MESSAGE_UNAVAILABLE,
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
    ErrorCode.NODE_UNAVAILABLE,
    ErrorCode.CLIENT_APP_CRASHED,
}
MOST = 64  # messages in a call
FASTEST, SLOWEST = 0.002, 1.0  # seconds between polls of the grid


@dataclass(frozen=True)
class Answer:
    """One node's reply: a parcel, or the reason why there is none, which is one line of printable
    text whoever wrote it."""

    node: int
    parcel: Parcel | None
    reason: str = ""
    malformed: bool = False
    lost: bool = False  # on its way: the node or its process ended, the client itself did not fail


def message(
    parcel: Parcel,
    node: int,
    kind: str,
    group: str,
    ttl: float,
    arrays: dict[str, Array] | None = None,
) -> Message:
    """Something asked of a node. The superlink takes an answer for a node's own where it names the
    message, by a digest of it: a fact that nobody else knows keeps other nodes from guessing it, of
    40 bits, as each guess is a request and an order is soon answered.

    Args:
        arrays: the parcel's tensors, where they are made already.
    """
    facts = {**parcel.facts, "id": secrets.token_bytes(5)}
    content = wire.pack(replace(parcel, facts=facts), arrays)
    return Message(content, node, kind, group_id=group, ttl=ttl)


class Exchange:
    """Pushes messages and yields replies as they come; more may be pushed while it runs.

    Messages in a row that carry the same arrays go in one call, as Flower reads and sends once what
    messages of a call share. A grid may ask for `share` messages in a call instead, and that no
    more than a `window` of them be under way: then messages are made when their turn comes, and
    memory does not grow with their number. One that `waits` for replies when it is asked for them
    is asked again at once.

    Args:
        discreet: whether the log, which whoever started the run reads, is not to tell who answers.
    """

    def __init__(self, grid: Grid, deadline: float, discreet: bool = False) -> None:
        self.grid, self._discreet = grid, discreet
        self.until = time.monotonic() + deadline
        self._share: int = getattr(grid, "share", 0)
        self._window: float = getattr(grid, "window", math.inf)
        self._waits: bool = getattr(grid, "waits", False)
        self._open: dict[str, int] = {}
        self._unsent: list[int] = []
        self._waiting: Iterator[Message] = iter(())

    def push(self, messages: Iterable[Message]) -> None:
        """They are pushed in order, these after the ones that wait."""
        self._waiting = chain(self._waiting, messages)
        self._fill()

    def again(self, message: Message) -> None:
        """One message at once, before those that wait."""
        self._push([message])

    def _fill(self) -> None:
        """Push as long as there is room."""
        while len(self._open) + self._share <= self._window:
            if not (batch := self._batch()):
                return
            self._push(batch)

    def _batch(self) -> list[Message]:
        """The messages of the next call."""
        if self._share:
            return list(islice(self._waiting, self._share))
        batch: list[Message] = []
        for message in self._waiting:
            if batch and (len(batch) == MOST or _arrays(message) != _arrays(batch[0])):
                self._waiting = chain([message], self._waiting)
                break
            batch.append(message)
        return batch

    def _push(self, batch: list[Message]) -> None:
        """Flower gives None for a message that it could not send, and nothing if it sent none."""
        ids: list[str | None] = [*self.grid.push_messages(batch)] or [None] * len(batch)
        for m, id in zip(batch, ids, strict=True):
            if id:
                self._open[id] = m.metadata.dst_node_id
            else:
                self._unsent.append(m.metadata.dst_node_id)

    @property
    def open(self) -> bool:
        """Whether some node has not answered yet."""
        return bool(self._open or self._unsent)

    def answers(self, wait: bool = True) -> Iterator[Answer]:
        """Every node's answer once; those that are still missing at the deadline say so.

        Args:
            wait: else only those that are there; a later call goes on.
        """
        pause = FASTEST
        while True:
            self._fill()
            if not (self._open or self._unsent):
                return
            while self._unsent:
                yield Answer(self._unsent.pop(), None, "the message to it could not be sent")
            with profile.span("wait"):
                replies = pull(self.grid, list(self._open))
            found = bool(replies)
            while replies:
                reply = replies.pop(0)
                about = reply.metadata
                node = self._open.pop(about.reply_to_message_id, None)
                if node is None:
                    level = logging.DEBUG if self._discreet else logging.WARNING
                    log.log(level, "node %d: a reply that nobody waits for", about.src_node_id)
                elif about.src_node_id not in _may_answer(node, reply):
                    yield Answer(node, None, "another node answered in its place", malformed=True)
                else:
                    yield _answer(node, reply)
                del reply  # or it is in memory beside the next
            pause = FASTEST if found else min(2 * pause, SLOWEST)
            if time.monotonic() > self.until:
                late = [*self._open.values(), *(m.metadata.dst_node_id for m in self._waiting)]
                self._open = {}
                for node in late:
                    yield Answer(node, None, "no reply before the deadline")
            elif not (found or wait):
                return
            elif not found and self._open and not self._waits:
                with profile.span("wait"):
                    time.sleep(pause)


def _arrays(message: Message) -> list[int]:
    """The arrays that a message carries, by identity."""
    records = message.content.array_records.values()
    return [id(array) for record in records for array in record.values()]


def _may_answer(node: int, reply: Message) -> set[int]:
    """Whose reply counts: that of the node itself, or the superlink's word that there is none."""
    return {node, SUPERLINK_NODE_ID} if reply.has_error() else {node}


def _answer(node: int, reply: Message) -> Answer:
    if reply.has_error():
        reason = plain(reply.error.reason or "", LONG) or f"error {reply.error.code}"
        return Answer(node, None, reason, lost=reply.error.code in LOST)
    try:
        parcel = wire.unpack(reply.content)
    except WireError as e:
        return Answer(node, None, plain(str(e), LONG), malformed=True)
    if "reason" in parcel.facts:  # a text for people, which a node wrote
        parcel.facts["reason"] = plain(str(parcel.facts["reason"]), LONG)
    return Answer(node, parcel)
