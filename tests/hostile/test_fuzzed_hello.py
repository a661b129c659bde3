"""Promise: whatever a node says of itself costs that node its place, and nobody else anything."""

import math
from pathlib import Path
from typing import Any

from flwr.app import Message

import fedlora
from fedlora import wire
from fedlora.wire import Parcel
from server.greeting import Greeter
from server.roster import Roster
from tests.federation import Watch, World, federate, meddled

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
            self.asked.append(message)
        return [m.metadata.message_id for m in self.asked[-1:]]

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
