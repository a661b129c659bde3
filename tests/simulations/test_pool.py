"""What the pool does with a job whose worker dies; threads stand in for the processes here."""

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

from clients.frames import cut, whole
from fedlora import wire
from fedlora.config import Config
from fedlora.wire import Parcel
from simulations.grid import InProcessGrid
from simulations.pool import CRASHED, Pool

WAIT = 30.0  # seconds after which a test that hangs fails


@dataclass
class Process:
    """What the pool knows of a process: this one has ended as soon as its pipe is closed."""

    pipe: Connection
    exitcode: int = -9

    def join(self) -> None: ...

    def terminate(self) -> None: ...


@dataclass
class Fleet:
    """Workers that answer every message with its node's number, and die of some nodes.

    Attributes:
        deaths: how many more workers die of a node's message.
        seen: the nodes of every job that a worker was given, in turn.
    """

    deaths: dict[int, int] = field(default_factory=dict)
    seen: list[tuple[int, ...]] = field(default_factory=list)
    started: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self) -> tuple[Any, Connection]:
        ours, theirs = Pipe()
        self.started += 1
        threading.Thread(target=self._serve, args=(theirs,), daemon=True).start()
        return Process(theirs), ours

    def _serve(self, pipe: Connection) -> None:
        try:
            while True:
                _, asked, _ = whole(iter(pipe.recv_bytes, None))
                if self._dies([m.metadata.dst_node_id for m in asked]):
                    return pipe.close()
                replies = [
                    Message(wire.pack(Parcel({"node": m.metadata.dst_node_id})), reply_to=m)
                    for m in asked
                ]
                for piece in cut(None, replies):
                    pipe.send_bytes(piece)
        except (EOFError, OSError):
            return None

    def _dies(self, nodes: Sequence[int]) -> bool:
        with self.lock:
            self.seen.append(tuple(nodes))
            for node in nodes:
                if self.deaths.get(node, 0):
                    self.deaths[node] -= 1
                    return True
        return False


@pytest.fixture
def fleet(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    made = Fleet()
    monkeypatch.setattr(Pool, "_start", made.start)
    yield made


def asked(pool: Pool, *jobs: Sequence[int]) -> dict[int, Message]:
    """The replies to jobs of messages to these nodes, by node; a push is a job."""
    grid = InProcessGrid(Config(), 9, Path("clients"), pool)
    missing: set[str] = set()
    for nodes in jobs:
        messages = [Message(wire.pack(Parcel()), node, "train", ttl=3600.0) for node in nodes]
        missing |= set(grid.push_messages(messages))
    found: dict[int, Message] = {}
    until = time.monotonic() + WAIT
    while missing and time.monotonic() < until:
        for reply in grid.pull_messages(missing):
            missing.discard(reply.metadata.reply_to_message_id)
            found[reply.metadata.src_node_id] = reply
    return found


def said(replies: dict[int, Message]) -> dict[int, object]:
    """The node that a reply names, or the code of its error."""
    return {
        node: m.error.code if m.has_error() else wire.unpack(m.content).facts["node"]
        for node, m in replies.items()
    }


def test_a_job_of_many_is_given_to_the_next_worker_whole(fleet: Fleet) -> None:
    """Once, and in its order: alone each would end in other last bits."""
    fleet.deaths = {2: 1}
    with Pool(1, 1) as pool:
        found = said(asked(pool, [1, 2, 3], [4]))
    assert found == {1: 1, 2: 2, 3: 3, 4: 4}
    assert fleet.seen == [(1, 2, 3), (1, 2, 3), (4,)] and fleet.started == 2


def test_a_job_that_kills_every_worker_is_given_up(fleet: Fleet) -> None:
    """After the second, each of its messages is answered with an error that says how the worker
    ended; the jobs behind it are worked on."""
    fleet.deaths = {2: 9}
    with Pool(1, 1) as pool:
        replies = asked(pool, [1, 2], [3, 4])
    assert said(replies) == {1: CRASHED, 2: CRASHED, 3: 3, 4: 4}
    assert "ended with exit code -9" in replies[1].error.reason
    assert fleet.seen == [(1, 2), (1, 2), (3, 4)] and fleet.started == 3


def test_a_message_alone_is_answered_at_once(fleet: Fleet) -> None:
    """With an error, as the server decides whether to ask again; another worker is there for the
    next."""
    fleet.deaths = {1: 1}
    with Pool(1, 1) as pool:
        assert said(asked(pool, [1], [2])) == {1: CRASHED, 2: 2}
        assert said(asked(pool, [1])) == {1: 1}
    assert fleet.seen == [(1,), (2,), (1,)] and fleet.started == 2


def test_two_workers_have_a_job_each(fleet: Fleet) -> None:
    """One that dies holds up nobody else's job."""
    fleet.deaths = {1: 9}
    with Pool(2, 1) as pool:
        found = said(asked(pool, [1, 2], [3, 4], [5, 6]))
    assert found == {1: CRASHED, 2: CRASHED, 3: 3, 4: 4, 5: 5, 6: 6}
