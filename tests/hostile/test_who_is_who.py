"""Promise: a client id belongs to the node that became a member under it. Another one that takes
the name is refused, gets nothing that was that client's, and keeps nobody out."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.app import Message

import fedlora
from clients import keys
from clients.secret import proof
from fedlora import wire
from fedlora.errors import UserError
from fedlora.wire import Parcel
from server.greeting import Greeter
from server.identity import LIST
from server.roster import Roster
from tests.clients.nodes import Owned
from tests.federation import Crash, Meddler, Ran, Watch, World, crash_at, federate


class Node:
    """What one node says, and the key that the superlink knows it by (None: it knows none)."""

    def __init__(
        self, client: str, key: ec.EllipticCurvePrivateKey | None, proof: str = ""
    ) -> None:
        self.client, self.proof = client, proof
        public = key.public_key() if key else None
        self.key = key
        kind = (Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        self.public = public.public_bytes(*kind) if public else b""


class Nodes:
    """A superlink's grid, with the keys of its nodes."""

    closed = True

    def __init__(self, known: dict[str, Any], nodes: dict[int, Node]) -> None:
        self.known, self.nodes = known, nodes
        self.open: list[Message] = []

    def get_node_ids(self) -> list[int]:
        return list(self.nodes)

    def get_nodes(self) -> list[Any]:
        return [SimpleNamespace(node_id=i, public_key=n.public) for i, n in self.nodes.items()]

    def push_messages(self, messages: Any) -> list[str]:
        batch = list(messages)
        for message in batch:
            message.metadata.__dict__["_message_id"] = f"to {message.metadata.dst_node_id}"
        self.open += batch
        return [m.metadata.message_id for m in batch]

    def pull_messages(self, ids: list[str]) -> list[Message]:
        asked, self.open = self.open, []
        replies = []
        for m in asked:
            node = self.nodes[m.metadata.dst_node_id]
            facts = {"status": "ok", "client": node.client, "examples": 7, "rank": 0, **self.known}
            facts |= {"proof": node.proof} if node.proof else {}
            replies.append(Message(wire.pack(Parcel(facts)), reply_to=m))
        return replies


@pytest.fixture(scope="module")
def ran(world: World, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return federate(world, tmp_path_factory.mktemp("run"), "fedit", run__rounds=1)


@pytest.fixture
def net(ran: Ran) -> tuple[Greeter, Nodes]:
    """Greeter and grid: books and films are members, each with a key."""
    known = {**ran.resident.identity, "version": fedlora.__version__}
    grid = Nodes(known, {1: Node("books", new()), 2: Node("films", new())})
    greeter = Greeter(grid, ran.resident, Roster(), Watch(), "run")  # type: ignore[arg-type]
    greeter.greet()
    assert greeter.roster.present() == ["books", "films"]
    return greeter, grid


def new() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(keys.CURVE)


def come(greeter: Greeter, grid: Nodes, nodes: dict[int, Node]) -> dict[str, int]:
    """Who is where after these nodes are the ones that are there."""
    grid.nodes = nodes
    greeter.greet()
    return dict(greeter.roster.nodes)


def test_another_key_is_not_films(net: tuple[Greeter, Nodes]) -> None:
    """While films is there and while it is away; and films itself comes back, as the node that it
    was or, after the superlink forgot its nodes, as another with its key."""
    greeter, grid = net
    books, films = grid.nodes[1], grid.nodes[2]
    impostor = Node("films", new(), proof="0" * 64)
    assert come(greeter, grid, {1: books, 2: films, 7: impostor}) == {"books": 1, "films": 2}
    assert come(greeter, grid, {1: books, 8: impostor}) == {"books": 1}
    assert come(greeter, grid, {1: books, 8: impostor, 2: films}) == {"books": 1, "films": 2}
    assert come(greeter, grid, {1: books, 8: impostor, 9: films}) == {"books": 1, "films": 9}
    notes = greeter.observer.notes  # type: ignore[attr-defined]
    assert len(notes) == 2 and all("client films refused: another node" in n for n in notes)


def test_without_registered_keys_the_owner_proves_itself(net: tuple[Greeter, Nodes]) -> None:
    """A node that gets another key at every start shows what only the owner's disk can make; who
    shows another proof, or none, is refused. It need not wait until its old self is gone."""
    greeter, grid = net
    books, real = grid.nodes[1], "f" * 64
    come(greeter, grid, {1: books, 3: Node("shops", new(), real)})
    assert greeter.roster.nodes["shops"] == 3
    there = {1: books, 4: Node("shops", new(), "0" * 64), 5: Node("shops", new())}
    assert "shops" not in come(greeter, grid, there)
    assert come(greeter, grid, {1: books, 6: Node("shops", new(), real)})["shops"] == 6
    both = {1: books, 6: grid.nodes[6], 11: Node("shops", new(), real)}
    assert come(greeter, grid, both)["shops"] == 11


def test_it_holds_over_a_restart_of_the_server(net: tuple[Greeter, Nodes]) -> None:
    """Whose an id is, is part of the checkpoint; of a proof it has a digest alone."""
    greeter, grid = net
    greeter.roster.members["films"].proof = ""
    dumped = greeter.roster.dump()
    roster = Roster()
    roster.load(dumped)
    again = Greeter(grid, greeter.resident, roster, Watch(), "run")  # type: ignore[arg-type]
    films = grid.nodes[2]
    impostor = {1: grid.nodes[1], 7: Node("films", new(), "0" * 64)}
    assert come(again, grid, impostor) == {"books": 1}
    assert come(again, grid, {1: grid.nodes[1], 9: films})["films"] == 9
    shown = "s" * 64
    come(again, grid, {**grid.nodes, 12: Node("shops", new(), shown)})
    assert shown not in str(roster.dump())


def test_the_first_to_come_goes_and_the_real_one_is_asked(ran: Ran) -> None:
    """Before round 1 nobody is a member: whoever was refused for a name that was taken is asked
    again when that node goes."""
    known = {**ran.resident.identity, "version": fedlora.__version__}
    first, films = Node("films", new()), Node("films", new())
    grid = Nodes(known, {1: Node("books", new()), 2: first, 3: films})
    greeter = Greeter(grid, ran.resident, Roster(), Watch(), "run")  # type: ignore[arg-type]
    greeter._ask([1, 2, 3])
    greeter._hear()
    assert greeter.roster.nodes["films"] == 2 and not greeter.roster.members
    greeter._greeted = {1, 2, 3}
    assert come(greeter, grid, {1: grid.nodes[1], 3: films}) == {"books": 1, "films": 3}


def test_the_operators_list_decides_alone(
    ran: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a list of clients and keys, by fingerprint or as in a .pub file, the first to come is
    nobody unless it is on it: a stolen proof does not help, and a new key in the list does."""
    key, other, stranger = new(), new(), new()
    line = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    path = tmp_path / "clients.toml"
    path.write_text(f'films = "{line}"\nbooks = "{keys.fingerprint(other.public_key())}"\n')
    monkeypatch.setenv(LIST, str(path))
    known = {**ran.resident.identity, "version": fedlora.__version__}
    nodes = {
        1: Node("films", stranger, "f" * 64),
        2: Node("films", key, "f" * 64),
        3: Node("books", other),
        4: Node("shops", new()),
        5: Node("books", None),
    }
    grid, roster = Nodes(known, nodes), Roster()
    greeter = Greeter(grid, ran.resident, roster, Watch(), "run")  # type: ignore[arg-type]
    greeter.greet()
    assert roster.nodes == {"films": 2, "books": 3}
    path.write_text(f'films = "{keys.fingerprint(stranger.public_key())}"\n')
    greeter = Greeter(grid, ran.resident, roster, Watch(), "run")  # type: ignore[arg-type]
    roster.nodes = {}
    greeter.greet()
    assert roster.nodes == {"films": 1}


@pytest.mark.parametrize("text", ['films = "nonsense"', "films =", 'films = ["a"]'])
def test_a_list_that_cannot_be_used_starts_nothing(
    ran: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """It is never taken for no list."""
    path = tmp_path / "clients.toml"
    path.write_text(text)
    for name in (path, tmp_path / "nowhere.toml"):
        monkeypatch.setenv(LIST, str(name))
        with pytest.raises(UserError, match=LIST):
            Greeter(None, ran.resident, Roster(), Watch(), "run")  # type: ignore[arg-type]


def test_a_real_node_shows_its_proof_and_an_impostor_gets_no_factors(
    world: World, tmp_path: Path
) -> None:
    """Real nodes over a crash of the server: books and shops are let in again as other nodes; one
    that comes in films' place, with other rows and another disk, is sent no order."""
    owned = Owned(world, tmp_path)
    given = {**owned.run(owned.server), "run__rounds": 2, "model__name": str(world.model)}
    with pytest.raises(Crash):
        federate(
            world, tmp_path, "fedit", grid=owned.grid(), watch=crash_at(2, "train"), **given
        )  # fmt: skip
    # Films' node is gone; in its place one with other rows, and another disk, takes its name.
    owned.nodes["films"] = {
        **owned.nodes["shops"], "client": "films", "state-dir": str(tmp_path / "impostor")
    }  # fmt: skip
    meddler = Meddler(lambda reply: reply)

    def grid(inner: Any) -> Any:
        return meddler(owned.grid("films", "books", "shops")(inner))

    ran = federate(world, tmp_path, "fedit", grid=grid, resume=True, **given)
    assert [r["client"] for r in ran.rows("client") if r["round"] == 2] == ["books", "shops"]
    assert {
        m.metadata.dst_node_id for m in meddler.pushed if m.metadata.message_type != "query"
    } == {2, 3}
    assert any("client films refused" in note for note in ran.watch.notes)


def test_a_proof_says_nothing_to_another_run(tmp_path: Path) -> None:
    """It differs by run and by client, stays the same otherwise, and its secret is for the owner
    alone to read."""
    one = proof(tmp_path / "state", "run", "films")
    assert one == proof(tmp_path / "state", "run", "films") and len(one) == 64
    others = {
        proof(tmp_path / "state", "other", "films"),
        proof(tmp_path / "state", "run", "books"),
        proof(tmp_path / "elsewhere", "run", "films"),
    }
    assert len(others) == 3 and one not in others
    secret = tmp_path / "state" / "identity"
    assert secret.stat().st_mode & 0o077 == 0 and secret.read_text() not in one
