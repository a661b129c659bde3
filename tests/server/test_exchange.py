"""Messages in shares and within a window, against a grid that does as it is told."""

import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
from flwr.app import Error, Message
from flwr.common.constant import ErrorCode
from flwr.supercore.task_identity import TaskIdentity

from fedlora import wire
from fedlora.wire import Parcel
from server import exchange
from server.exchange import Answer, Exchange, message

DEADLINE = 3600.0


class Grid:
    """Answers what was pushed, in order, as many at a pull as it is told; `late` nodes never."""

    def __init__(
        self,
        at_once: int = 1,
        late: Iterable[int] = (),
        reply: Callable[[Message], Message] | None = None,
    ) -> None:
        self.at_once, self.late = at_once, set(late)
        self.reply = reply or (lambda m: Message(wire.pack(Parcel({})), reply_to=m))
        self.pushed: list[list[int]] = []
        self.open: dict[str, Message] = {}
        self.most = 0

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        batch = list(messages)
        ids = [f"id-{sum(map(len, self.pushed)) + i}" for i in range(len(batch))]
        self.pushed.append([m.metadata.dst_node_id for m in batch])
        for id, m in zip(ids, batch, strict=True):
            m.metadata.__dict__["_message_id"] = id
            self.open[id] = m
        self.most = max(self.most, len(self.open))
        return ids

    def pull_messages(self, ids: Iterable[str]) -> Iterable[Message]:
        assert set(ids) <= self.open.keys()
        ready = [k for k, m in self.open.items() if m.metadata.dst_node_id not in self.late]
        return [self.reply(self.open.pop(k)) for k in ready[: self.at_once]]


class Bounded(Grid):
    """One that asks for three in a call, and no more than seven under way."""

    share, window = 3, 7


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Seconds that pass where the exchange sleeps, and then only."""
    now = [0.0]
    monkeypatch.setattr(exchange.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(exchange.time, "sleep", lambda s: now.__setitem__(0, now[0] + s))
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    yield now


def order(node: int) -> Message:
    return message(Parcel(), node, "train", "1", DEADLINE)


def orders(count: int, made: list[int]) -> Iterator[Message]:
    """To nodes 1, 2, …; `made` says which there are already."""
    for node in range(1, count + 1):
        made.append(node)
        yield order(node)


def pushing(grid: Any, messages: Iterable[Message], deadline: float = DEADLINE) -> Exchange:
    made = Exchange(grid, deadline)
    made.push(messages)
    return made


def nodes(answers: Iterable[Answer]) -> list[int]:
    return [a.node for a in answers]


def test_without_a_window_all_go_out_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a network: in one call those in a row that carry the same arrays, so that memory does
    not grow with messages that differ, and no more than a call may have."""
    grid, made = Grid(), []
    found = pushing(grid, orders(5, made))
    assert made == [1, 2, 3, 4, 5] and grid.pushed == [[1, 2, 3, 4, 5]]
    assert nodes(found.answers()) == [1, 2, 3, 4, 5]

    monkeypatch.setattr(exchange, "MOST", 3)
    same, grid = wire.Arrays()({"x": torch.zeros(2)}), Grid()
    other = [wire.Arrays()({"x": torch.zeros(2)}) for _ in range(2)]
    carried = [same, same, other[0], other[1], same, same, same, same]
    found = pushing(
        grid,
        (message(Parcel(), n, "train", "1", DEADLINE, x) for n, x in enumerate(carried, 1)),
    )
    assert grid.pushed == [[1, 2], [3], [4], [5, 6, 7], [8]]
    assert nodes(found.answers()) == list(range(1, 9))


@pytest.mark.parametrize("at_once", [1, 2, 5, 99])
def test_never_more_than_a_window_is_under_way(at_once: int) -> None:
    """In shares, the last of them short, and in order, however replies come; everybody answers
    once."""
    grid, made = Bounded(at_once), []
    found = nodes(pushing(grid, orders(20, made)).answers())
    assert found == list(range(1, 21))
    assert [n for batch in grid.pushed for n in batch] == list(range(1, 21))
    assert [len(batch) for batch in grid.pushed] == [3] * 6 + [2]
    assert grid.most <= 7


def test_messages_are_made_when_there_is_room_for_a_share() -> None:
    """Two shares at first; a third once so many replies are in, asked for one by one."""
    grid, made = Bounded(at_once=1), []
    answers = pushing(grid, orders(20, made)).answers()
    assert made == [1, 2, 3, 4, 5, 6]
    next(answers)
    next(answers)
    assert len(made) == 6 or len(made) == 9
    seen = 2
    for _ in answers:
        seen += 1
        assert len(made) - seen <= 7
    assert seen == 20


def test_what_was_never_sent_is_missing_at_the_deadline(clock: list[float]) -> None:
    """As is what nobody replied to; everybody is told of once, in order."""
    grid, made = Bounded(late=range(1, 21)), []
    found = list(pushing(grid, orders(10, made), deadline=60.0).answers())
    assert nodes(found) == list(range(1, 11))
    assert {a.reason for a in found} == {"no reply before the deadline"}
    assert all(a.parcel is None for a in found)
    assert grid.pushed == [[1, 2, 3], [4, 5, 6]]
    assert clock[0] > 60.0


def test_some_late_nodes_hold_up_no_others_but_what_waits_for_room() -> None:
    """Five that never answer leave no room for another share of three."""
    grid = Bounded(at_once=99, late=[1, 2, 3, 4, 5])
    found = list(pushing(grid, orders(9, []), deadline=60.0).answers())
    assert [a.node for a in found if a.parcel] == [6]
    assert [a.node for a in found if not a.parcel] == [1, 2, 3, 4, 5, 7, 8, 9]


def test_a_lost_one_is_sent_again_before_those_that_wait() -> None:
    """Alone, at once, past the window too, while the answers are being read."""
    lost = [2]

    def reply(m: Message) -> Message:
        if m.metadata.dst_node_id in lost:
            lost.remove(m.metadata.dst_node_id)
            return Message(Error(ErrorCode.NODE_UNAVAILABLE, "gone"), reply_to=m)
        return Message(wire.pack(Parcel({})), reply_to=m)

    grid, made = Bounded(reply=reply), []
    running, found = pushing(grid, orders(12, made)), []
    for answer in running.answers():
        found.append((answer.node, answer.lost))
        if answer.lost:
            assert made == [1, 2, 3, 4, 5, 6]
            running.again(order(answer.node))
    assert grid.pushed[:3] == [[1, 2, 3], [4, 5, 6], [2]]
    assert found[:2] == [(1, False), (2, True)]
    assert sorted(n for n, lost in found if not lost) == list(range(1, 13))


def test_more_may_be_pushed_behind_those_that_wait() -> None:
    """In their order, shares across both."""
    grid = Bounded(at_once=99)
    running = pushing(grid, orders(8, []))
    running.push(order(node) for node in (9, 10))
    assert nodes(running.answers()) == list(range(1, 11))
    assert grid.pushed == [[1, 2, 3], [4, 5, 6], [7, 8, 9], [10]]


def test_nothing_pushed_is_nothing_answered() -> None:
    assert list(Exchange(Bounded(), DEADLINE).answers()) == []  # type: ignore[arg-type]


def test_an_answer_that_was_taken_is_gone_before_the_next_is_there() -> None:
    """Each may be hundreds of megabytes; whoever asks lets go of it too."""
    taken: list[weakref.ref[Message]] = []

    def reply(m: Message) -> Message:
        assert all(one() is None for one in taken)
        found = Message(wire.pack(Parcel({})), reply_to=m)
        taken.append(weakref.ref(found))
        return found

    exchange = Exchange(Grid(reply=reply), DEADLINE)
    exchange.push(orders(3, []))
    assert len(list(exchange.answers())) == len(taken) == 3
