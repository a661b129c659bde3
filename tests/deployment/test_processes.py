"""Processes that are killed: what ended is started again, and nothing of the run is lost."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fedlora.tensors import Tensors
from tests.deployment.net import Net
from tests.deployment.processes import Role, wait_for
from tests.federation import same

pytestmark = pytest.mark.deployment

HELD = "held:HeldFedEx"


@pytest.fixture(autouse=True)
def nobody_is_held(net: Net) -> Iterator[None]:
    """After a test, whatever became of it."""
    yield
    for node in net.nodes.values():
        for file in node.hold.iterdir():
            file.unlink()


@pytest.fixture(scope="module")
def undisturbed(net: Net) -> Tensors:
    """The server's state after two rounds in which nothing went wrong."""
    run = net.simulated("undisturbed", HELD, run__rounds=2)
    assert run.finished(400) == 0, run.tail()
    return net.state(net.simulations / "undisturbed", 2)


def submitted(net: Net, name: str, client: str, round: int = 1) -> tuple[Role, Path]:
    """A run of two rounds, and the file that holds the client back in this round's training, which
    it has begun."""
    file = net.nodes[client].held(round)
    role = net.submit(name, HELD, run__rounds=2)
    net.nodes[client].reached(round)
    return role, file


def completed(net: Net, role: Role, name: str, undisturbed: Tensors) -> None:
    """The run ended well, with every update in every round and the state it should have."""
    assert role.finished(400) == 0, role.tail()
    rows = net.metrics(net.runs / name)
    assert [(r["clients"], r["failed"]) for r in rows[1:]] == [(3, {}), (3, {})]
    assert same(net.state(net.runs / name, 2), undisturbed)


def test_a_killed_client_process_costs_nothing(net: Net, undisturbed: Tensors) -> None:
    """Its order is sent once more, and the run ends in the same bits."""
    role, held = submitted(net, "clientapp", "books")
    net.nodes["books"].kill_one("clients.guard")  # in the place of flwr-clientapp
    held.unlink()
    completed(net, role, "clientapp", undisturbed)
    assert "books is asked once more" in net.logged("clientapp")


def test_a_killed_trainer_is_replaced(net: Net, undisturbed: Tensors) -> None:
    """The node starts another over the same message, and the run ends in the same bits."""
    role, held = submitted(net, "trainer", "films")
    net.nodes["films"].kill_one("clients.trainer")
    held.unlink()
    completed(net, role, "trainer", undisturbed)
    assert net.nodes["films"].said("the trainer ended over this message: starting another")
    assert "asked once more" not in net.logged("trainer")


def test_a_killed_node_comes_back(net: Net, undisturbed: Tensors) -> None:
    """Started again with patience it takes part again: its order is sent once more, or the round's
    row says that it was missing and why."""
    role, held = submitted(net, "node", "shops")
    node = net.nodes["shops"]
    node.kill()
    held.unlink()
    node.revive()
    assert role.finished(400) == 0, role.tail()
    first, second = net.metrics(net.runs / "node")[1:]
    if first["failed"] or second["clients"] < 3:
        assert first["failed"].keys() <= {"shops"}
        assert all(first["failed"].values())
    else:
        assert same(net.state(net.runs / "node", 2), undisturbed)
    wait_for("all nodes are online", lambda: net.online() == 3, 90)


def test_a_killed_superlink_goes_on_with_the_run(net: Net, undisturbed: Tensors) -> None:
    """Nodes, the ServerApp and whoever submitted the run wait for it to be back."""
    role, held = submitted(net, "superlink", "books")
    net.kill_superlink()
    held.unlink()
    net.restart_superlink()
    completed(net, role, "superlink", undisturbed)


def test_a_killed_server_goes_on_from_its_checkpoint(net: Net, undisturbed: Tensors) -> None:
    """Who submitted the run is told that it failed; resumed, it ends in the same bits."""
    role, held = submitted(net, "server", "films", round=2)
    net.superexec.kill_one("flwr-serverapp")
    held.unlink()
    assert role.finished(400) == 1, role.tail()
    assert "fedlora submit --to net --resume" in role.tail().replace("\n", " ")
    assert [r["round"] for r in net.metrics(net.runs / "server")] == [0, 1]
    again = net.submit("server", HELD, resume=True)
    completed(net, again, "server", undisturbed)
