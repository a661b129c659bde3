"""The ClientApp on a node with an owner: whose rows, which model, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

import strategies
from clients import app
from fedlora import settings, wire
from fedlora.errors import UserError
from fedlora.orders import Order
from fedlora.wire import Parcel
from tests.clients.nodes import Owned
from tests.federation import Watch, World, federate, same


@pytest.fixture
def owned(world: World, tmp_path: Path) -> Owned:
    return Owned(world, tmp_path)


def context(world: World, node: dict[str, Any], **given: Any) -> Context:
    flat = {k.replace("__", ".", 1): v for k, v in given.items()}
    config, _ = settings.resolve(world.tree(Path("runs"), flat), strategies.load)
    run = settings.to_flat(config)
    return Context(run_id=1, node_id=1, node_config=node, state=RecordDict(), run_config=run)


def told(kind: str, parcel: Parcel, context: Context) -> dict[str, Any]:
    """The facts of the reply."""
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    message = Message(wire.pack(parcel), 1, kind)
    return wire.unpack(app.app(message, context).content).facts


def ordered(client: str, round: int) -> Parcel:
    order = Order("e", round, "train", client, 4, 2.0, 9, "t", "", "", 0, [], [], 3, [])
    return Parcel(order.facts())


def test_nodes_with_their_own_files_end_in_a_simulation_s_bits(
    owned: Owned, tmp_path: Path
) -> None:
    """Every state of the run, though the coordinator has nobody's rows."""
    whole = federate_in(tmp_path / "one", owned, owned.together)
    apart = federate_in(tmp_path / "two", owned, owned.server, grid=owned.grid())
    assert apart.resident.federation.clients == []
    assert {r["client"] for r in apart.rows("client")} == set(owned.nodes)
    for number in range(1, 3):
        assert same(whole.state(number), apart.state(number))
        assert whole.row(number)["personalised"] == apart.row(number)["personalised"]


def federate_in(root: Path, owned: Owned, folder: Path, **given: Any) -> Any:
    world = World(Path(owned.nodes["books"]["model"]), folder)
    root.mkdir(exist_ok=True)
    given = {"run__rounds": 2, "run__keep": "all", **given}
    return federate(world, root, "fedex", **owned.run(folder, **given))


def test_a_client_that_lacks_labels_keeps_the_full_head(owned: Owned, tmp_path: Path) -> None:
    """With data.labels a node whose rows are all good takes part beside the others."""
    file = Path(owned.nodes["films"]["data"])
    good = [x for x in file.read_text().splitlines() if json.loads(x)["label"] == "good"]
    file.write_text("".join(line + "\n" for line in good))
    labels = {"data__labels": ["bad", "good"]}
    ran = federate_in(tmp_path / "run", owned, owned.server, grid=owned.grid(), **labels)
    assert {r["client"] for r in ran.rows("client") if r["round"] == 2} == set(owned.nodes)
    watch = Watch()
    ran = federate_in(tmp_path / "no", owned, owned.server, grid=owned.grid(), watch=watch)
    assert any("UserError: its own log says more" in note for note in watch.notes)
    assert {r["client"] for r in ran.rows("client")} == {"books", "shops"}


def test_the_owners_model_and_columns_are_used(world: World, owned: Owned) -> None:
    """A node has its model where it likes, and its columns; the digest says that it is the same."""
    file = Path(owned.nodes["books"]["data"])
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    moved = [{"body": row["text"], "mood": row["label"]} for row in rows]
    plain = told("query", Parcel(), context(world, owned.nodes["books"]))
    file.write_text("".join(json.dumps(row) + "\n" for row in moved))
    node = owned.nodes["books"] | {"text": "body", "label": "mood"}
    facts = told("query", Parcel(), context(world, node, model__name="/models/of/the/server"))
    assert facts["status"] == "ok"
    assert {k: facts[k] for k in plain} == plain


@pytest.mark.parametrize(
    ("limit", "given", "says"),
    [
        ({"max_rounds": 1}, {}, "allows 1 rounds; the run asks for 2"),
        ({"max_steps": 3}, {}, "allows 3 steps a round; the run asks for 4"),
        ({"max_steps": 6}, {"train__steps": None}, "allows 6 steps a round; the run asks for"),
        ({"max_payload": 0.0001}, {}, "allows 0.0001 MB"),
        ({"methods": "fedit"}, {}, "allows fedit; the run asks for strategy.name = fedex"),
    ],
    ids=str,
)
def test_what_an_owner_refuses_is_said_before_round_1(
    owned: Owned, tmp_path: Path, limit: dict[str, Any], given: dict[str, Any], says: str
) -> None:
    """The server is told which setting stands against what."""
    watch = Watch()
    with pytest.raises(UserError, match="0 can take part"):
        grid = owned.grid("books", **limit)
        federate_in(tmp_path / "run", owned, owned.server, grid=grid, watch=watch, **given)
    assert any(says in note for note in watch.notes), watch.notes


def test_a_round_past_the_limit_is_refused_by_the_order(world: World, owned: Owned) -> None:
    """Whatever run.rounds says; a simulation's partition has no such limit."""
    node = owned.nodes["books"] | {"max-rounds": 5}
    ours = context(world, node, strategy__name="fedit")
    refused = told("train", ordered("books", 6), ours)
    assert refused["status"] == "error" and "allows 5 rounds" in refused["reason"]
    assert told("train", ordered("books", 5), ours)["status"] == "stale"
    partition = {"partition-id": 0, "num-partitions": 3, "state-dir": node["state-dir"]}
    simulated = context(world, partition, strategy__name="fedit")
    assert told("train", ordered("books", 2000), simulated)["status"] == "stale"


def test_partitions_share_a_model_and_owners_do_not(world: World, owned: Owned) -> None:
    """A simulation's worker loads once for all clients; another owner's setting is another node.
    What `fedlora submit` tells the server alone changes nothing."""
    parts = [{"partition-id": i, "num-partitions": 3, "state-dir": f"/s{i}"} for i in range(2)]
    first = app.resident(context(world, parts[0]))
    assert app.resident(context(world, parts[1])) is first
    books = context(world, owned.nodes["books"])
    one = app.resident(books)
    assert one is not first and one.federation.clients == ["books"]
    submitted = {**books.run_config, "submit.run": "name", "submit.resume": True}
    again = Context(1, 1, books.node_config, RecordDict(), submitted)
    assert app.resident(again) is one
    changed = {**owned.nodes["books"], "max-rounds": 7}
    assert app.resident(context(world, changed)) is not one
    app.forget()
    assert app.resident(books) is not one


def logged(caplog: pytest.LogCaptureFixture) -> str:
    return " ".join(record.getMessage() for record in caplog.records)


def test_a_client_that_the_data_does_not_have_is_said(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """A node without rows of its own is one of the data's clients. Its own log says so."""
    facts = told("query", Parcel(), context(world, {"client": "bookz"}))
    assert facts["reason"] == "UserError: its own log says more"
    assert "client bookz" in logged(caplog) and "books, films, shops" in logged(caplog)


def test_no_run_tells_a_row_s_label(
    world: World, owned: Owned, caplog: pytest.LogCaptureFixture
) -> None:
    """A label that the run does not know is said in the node's own log, and nowhere else."""
    labels = {"data__labels": ["good", "so-so"], "strategy__name": "fedit"}
    facts = told("query", Parcel(), context(world, owned.nodes["books"], **labels))
    assert facts["status"] == "error" and "bad" not in facts["reason"]
    assert "the label 'bad'" in logged(caplog)


def test_a_device_that_is_not_there_is_said(
    world: World, owned: Owned, caplog: pytest.LogCaptureFixture
) -> None:
    """With torch's own reason, in the node's log."""
    node = owned.nodes["books"] | {"device": "xpu:7"}
    facts = told("query", Parcel(), context(world, node, strategy__name="fedit"))
    assert facts["status"] == "error" and "xpu" not in facts["reason"]
    assert "device = xpu:7 cannot be used" in logged(caplog)
