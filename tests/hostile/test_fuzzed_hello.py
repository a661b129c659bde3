"""Promise: whatever a node says of itself costs that node its place, and nobody else anything."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import pytest
from flwr.app import Message

import fedlora
from fedlora import wire
from fedlora.wire import Parcel
from server import exchange, greeting
from server.agreement import refusal
from server.delivery import TAKEN
from server.greeting import Greeter
from server.roster import Roster
from tests.federation import Ran, Watch, World, federate, meddled

EVIL = ["", "x" * 5000, "a\nfedlora-event {}", "\x1b[2J", "\u202eksa", "é" * 90]
HELLO: dict[str, list[Any]] = {
    "client": [*EVIL, "a" * 300, 3, b"films", ["films"], "films\n", " films"],
    "examples": [0, -1, 2**62, 1.5, True, "many", [1], math.inf],
    "rank": [-1, 99, True, 0.5, "1", [0]],
    "labels": [3, "bad", b"", 1.5, ["bad"], [1, 2], ["x" * 9000, "y\n"]],
    "base": [3, b"", "0" * 9000, ["a"]],
    "format": [3, "x\n" * 3000, [1.0]],
    "tokenizer": [3, ""],
    "version": ["9\n9", 3, ["0"]],
    "status": ["wrong", "error", 3, ""],
}


class Nodes:
    """A grid of nodes that say of themselves what they were given."""

    closed = True

    def __init__(self, said: list[dict[str, Any]]) -> None:
        self.said, self.asked = said, []  # type: ignore[var-annotated]

    def get_node_ids(self) -> range:
        return range(1, len(self.said) + 1)

    def push_messages(self, messages: Any) -> list[str]:
        for message in messages:
            message.metadata.__dict__["_message_id"] = str(message.metadata.dst_node_id)
        self.asked += messages
        return [m.metadata.message_id for m in messages]

    def pull_messages(self, ids: list[str]) -> list[Message]:
        asked, self.asked = self.asked, []
        return [
            Message(wire.pack(Parcel(self.said[m.metadata.dst_node_id - 1])), reply_to=m)
            for m in asked
        ]


def test_who_it_is(world: World, tmp_path: Path) -> None:
    """A hello of wrong types, sizes and characters leaves that node out, with one printable line
    that says why; the others take part. A name that leads elsewhere as a path may be had: it is
    quoted where it names a file."""
    resident = federate(world, tmp_path, "fedit", run__rounds=1, train__steps=1).resident
    true = {"status": "ok", "examples": 7, "rank": 0, "version": fedlora.__version__}
    true |= resident.identity
    honest = [{**true, "client": name} for name in ("books", "../../x", "%00", "shops")]
    lies = [{**true, "client": f"liar {i}"} for i in range(sum(map(len, HELLO.values())))]
    wrong = [(key, lie) for key, given in HELLO.items() for lie in given]
    for facts, (key, lie) in zip(lies, wrong, strict=True):
        facts[key] = lie
    watch = Watch()
    nodes: Any = Nodes([*lies, *honest])
    greeter = Greeter(nodes, resident, Roster(), watch, "run")
    greeter.greet()
    assert sorted(greeter.roster.members) == ["%00", "../../x", "books", "shops"]
    assert len(watch.notes) == len(lies)
    assert all(note.isprintable() and len(note) < 700 for note in watch.notes)


def test_a_name_is_no_path(world: World, tmp_path: Path) -> None:
    """Files of a client whose name leads elsewhere lie where the others' do."""
    grid = meddled("query", 2, lambda p: p.facts.update(client="../../x"), 0)
    ran = federate(world, tmp_path, "fedit", grid=grid, run__keep="updates", run__rounds=1)
    sent = {path.name for path in ran.run.round(1).glob("sent-*")}
    assert sent == {f"sent-{name}.safetensors" for name in ("..%2F..%2Fx", "books", "shops")}


def test_every_name_that_is_taken_travels(world: World, tmp_path: Path) -> None:
    """The files that are kept of a client have names that are brought back."""
    resident = federate(world, tmp_path, "fedit", run__rounds=1, train__steps=1).resident
    facts = {**resident.identity, "version": fedlora.__version__, "examples": 7, "rank": 0}
    taken = []
    for number in range(1, 129):
        id = ".é" * min(number // 2, 26) + "a" * max(0, number - 52)
        if not refusal({**facts, "client": id}, resident):
            taken.append(max(len(f"update-{quote(id)}.safetensors"), len(quote(id))))
            for kind in ("sent", "update"):
                assert TAKEN.fullmatch(f"round-0001/{kind}-{quote(id, safe='')}.safetensors")
    assert max(taken) > 190


class Late(Nodes):
    """Nodes that come and go, some of which do not answer until they do. Time passes when somebody
    sleeps, and not otherwise."""

    closed = False

    def __init__(self, said: list[dict[str, Any]], silent: set[int]) -> None:
        super().__init__(said)
        self.silent, self.there, self.open, self.now = silent, {*range(1, len(said) + 1)}, {}, 0.0  # type: ignore[var-annotated]

    def get_node_ids(self) -> list[int]:  # type: ignore[override]
        return sorted(self.there)

    def push_messages(self, messages: Any) -> list[str]:
        batch = list(messages)
        for m in batch:
            m.metadata.__dict__["_message_id"] = f"{len(self.asked)}"
            self.asked.append(m.metadata.dst_node_id)
            self.open[m.metadata.message_id] = m
        return [m.metadata.message_id for m in batch]

    def pull_messages(self, ids: list[str]) -> list[Message]:
        chosen = [i for i in ids if self.open[i].metadata.dst_node_id not in self.silent]
        asked = [self.open.pop(i) for i in chosen]
        return [
            Message(wire.pack(Parcel(self.said[m.metadata.dst_node_id - 1])), reply_to=m)
            for m in asked
        ]


@pytest.fixture(scope="module")
def ran(world: World, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return federate(world, tmp_path_factory.mktemp("run"), "fedit", run__rounds=1, train__steps=1)


def late(
    ran: Ran, monkeypatch: pytest.MonkeyPatch, count: int, silent: set[int]
) -> tuple[Greeter, Late]:
    true = {"status": "ok", "examples": 7, "rank": 0, "version": fedlora.__version__}
    said = [{**true, **ran.resident.identity, "client": f"client {i}"} for i in range(count)]
    grid = Late(said, silent)

    def sleep(seconds: float) -> None:
        grid.now += seconds

    clock = SimpleNamespace(monotonic=lambda: grid.now, sleep=sleep)
    for module in (greeting, exchange):
        monkeypatch.setattr(module, "time", clock)
    return Greeter(grid, ran.resident, Roster(), Watch(), "run"), grid  # type: ignore[arg-type]


def test_silence_costs_one_wait(ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that never says who it is: the others wait once, for a part of run.deadline, however
    many rounds there are; and for another that comes later, less."""
    greeter, grid = late(ran, monkeypatch, 4, {2, 4})
    grid.there = {1, 2, 3}
    greeter.greet()
    assert greeter.roster.present() == ["client 0", "client 2"]
    first = grid.now
    assert first < greeting.FIRST + 1
    for _ in range(20):
        greeter.greet()
    assert grid.now == first and grid.asked == [1, 2, 3]
    grid.there = {1, 2, 3, 4}
    for _ in range(20):
        greeter.greet()
    assert grid.now < first + greeting.LATER + 1
    grid.now += ran.config.run.deadline + 1  # the questions are over: they are put again
    greeter.greet()
    greeter.greet()
    assert sorted(grid.asked) == [1, 2, 2, 3, 4, 4]
    assert grid.now < first + greeting.LATER + 2 + ran.config.run.deadline


def test_silence_in_a_simulation_costs_one_deadline(
    ran: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There all are waited for, so that a run repeats; it is not waited for again."""
    monkeypatch.setattr(Late, "closed", True)
    greeter, grid = late(ran, monkeypatch, 2, {2})
    for _ in range(5):
        greeter.greet()
    assert grid.now < ran.config.run.deadline + 1
    grid.silent = set()
    greeter.greet()
    assert greeter.roster.present() == ["client 0", "client 1"]


def test_a_slow_node_gets_in_by_itself(ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that loads its model for long is asked once, and is in when it has answered; while
    others are still coming in, it is waited for."""
    greeter, grid = late(ran, monkeypatch, 3, {2, 3})
    greeter.greet()
    assert greeter.roster.present() == ["client 0"]
    grid.silent = {3}
    greeter.greet()
    assert greeter.roster.present() == ["client 0", "client 1"]
    grid.there, grid.silent = {1, 2}, set()  # the last one goes before it answers
    greeter.greet()
    assert greeter.roster.present() == ["client 0", "client 1"] and grid.asked == [1, 2, 3]
