"""Which header sets pass: by key and time, for as long as the superlink would take them."""

import base64
from datetime import UTC, datetime, timedelta

import pytest

from server import once
from server.once import KEY, SIGNATURE, TIME, WINDOW, Once, Unsigned, Used

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def headers(key: bytes = b"key", ago: float = 0.0) -> list[tuple[bytes, bytes]]:
    time = (NOW - timedelta(seconds=ago)).isoformat().encode()
    return [(KEY, base64.b64encode(key)), (TIME, time), (SIGNATURE, b"any")]


class Gates:
    """Gates with clocks of their own; this one began as long ago as it says."""

    def __init__(self, ago: float = 1000.0) -> None:
        self.now = 0.0
        self.once = Once(lambda: self.now, lambda: NOW.timestamp() - ago)
        self.now = ago


def test_a_set_is_used_for_as_long_as_it_is_valid() -> None:
    """From its arrival until nobody would take it any more, counted from its answer; others of the
    key, and of other keys, pass meanwhile. Then it is forgotten."""
    gate = Gates()
    mark = gate.once.take(headers())
    with pytest.raises(Used, match="used before"):
        gate.once.take(headers())  # while it is under way
    gate.now += 100
    gate.once.done(mark, used=True)
    for other in (headers(ago=1), headers(b"other")):
        gate.once.done(gate.once.take(other), used=True)
    gate.now += WINDOW - 1
    with pytest.raises(Used):
        gate.once.take(headers())
    gate.now += 2
    gate.once.take(headers())
    assert not gate.once._used


def test_what_was_not_used_is_taken_back() -> None:
    """It passes again, and holds no memory."""
    gate = Gates()
    for _ in range(3):
        gate.once.done(gate.once.take(headers()), used=False)
    assert not gate.once._used and not gate.once._open


def test_a_gate_does_not_know_what_passed_before_it() -> None:
    """A set that is older than the gate is refused while the superlink would take it: the one
    before may have let it pass."""
    gate = Gates(ago=60)
    gate.once.take(headers(ago=59))
    with pytest.raises(Used, match="older than this gate"):
        gate.once.take(headers(ago=61))
    gate.now += WINDOW
    gate.once.take(headers(ago=61))  # the superlink's own limit has it from here


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """When it is full nothing passes that might have been used, and nothing is forgotten."""
    monkeypatch.setattr(once, "MOST", 2)
    gate = Gates()
    for ago in (0, 1):
        gate.once.done(gate.once.take(headers(ago=ago)), used=True)
    with pytest.raises(Used, match="too many"):
        gate.once.take(headers(ago=2))
    gate.now += WINDOW + 1
    gate.once.take(headers(ago=2))


@pytest.mark.parametrize(
    "wrong",
    [
        headers()[:2],
        headers()[1:],
        [*headers(), headers()[1]],
        [(KEY, b"!"), *headers()[1:]],
        [headers()[0], (TIME, b"today"), headers()[2]],
        [headers()[0], (TIME, b"2026-01-01T00:00:00"), headers()[2]],
        [headers()[0], (TIME, b"\xff"), headers()[2]],
    ],
)
def test_other_headers_are_no_nodes(wrong: list[tuple[bytes, bytes]]) -> None:
    """One key, one time with its zone, one signature."""
    with pytest.raises(Unsigned):
        Gates().once.take(wrong)


def test_a_key_has_one_mark_in_every_spelling() -> None:
    """Of its letters in base64, of which the last has unused bits."""
    gate = Gates()
    gate.once.take([(KEY, b"QQ=="), *headers()[1:]])
    with pytest.raises(Used):
        gate.once.take([(KEY, b"QR=="), *headers()[1:]])
