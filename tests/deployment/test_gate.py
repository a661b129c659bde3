"""Nodes that reach the superlink through the gate alone."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deployment.net import ENV, ROOT, Net, Node, authority
from tests.deployment.processes import Role, free_port, wait_for
from tests.federation import World

pytestmark = pytest.mark.deployment


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory, world: World) -> Iterator[Net]:
    """A deployment without nodes, in place of the one that the other tests share."""
    deployed = Net(tmp_path_factory.mktemp("gated"), world, [])
    try:
        deployed.start()
        yield deployed
    finally:
        deployed.stop()


@pytest.fixture(scope="module")
def gate(net: Net) -> tuple[Role, int]:
    """The gate, up, and its port."""
    port, pki = free_port(), net.folder / "pki"
    command = [sys.executable, "-m", "server.gate", f"--listen=127.0.0.1:{port}"]
    command += [f"--superlink=127.0.0.1:{net.port}", f"--root-certificates={net.ca}"]
    command += [f"--certificate={pki}/gate/server.crt", f"--key={pki}/gate/server.key"]
    role = Role("gate", command, net.folder, {**ENV, "PYTHONPATH": str(ROOT)})
    role.start()
    wait_for("the gate is up", lambda: role.said("running on"), 60)
    return role, port


def behind(port: int, node: Node) -> Node:
    """The node, started, with the gate for its superlink. No relay in between: that would take a
    connection for a gate that is away and drop it, which Flower holds to be a wrong certificate."""
    node.command = [
        f"--superlink=127.0.0.1:{port}" if word.startswith("--superlink=") else word
        for word in node.command
    ]
    node.start()
    return node


def test_a_run_goes_through_the_gate(net: Net, gate: tuple[Role, int]) -> None:
    """A registered node gets online and does its part of a run, though the gate dies meanwhile and
    another takes its place."""
    role, port = gate
    node = net.node("books")
    net.register("books")
    held = node.held(2)
    behind(port, node)
    wait_for("the node is online", lambda: net.online() == 1, 90)
    run = net.submit("gated", "held:HeldFedEx", run__rounds=2, run__min_clients=1)
    node.reached(2)
    role.kill()
    held.unlink()
    wait_for("the node misses the gate", lambda: node.said("retrying in"), 120)
    role.start()
    assert run.finished(240) == 0, run.tail()
    rows = net.metrics(net.runs / "gated")[1:]
    assert [(row["clients"], row["failed"]) for row in rows] == [(1, {}), (1, {})]


def test_the_gate_lets_nobody_steer(net: Net, gate: tuple[Role, int]) -> None:
    """Flower's own command line, pointed at the gate, can neither list runs nor register a key."""
    role, port = gate
    with (net.flwr_home / "config.toml").open("a") as file:
        file.write(
            f'[superlink.gate]\naddress = "127.0.0.1:{port}"\nroot-certificates = "{net.ca}"\n'
        )
    net.node("intruder")
    with pytest.raises(AssertionError):
        net.flwr("supernode", "register", f"{net.folder}/keys/intruder.pub", "gate")
    with pytest.raises(AssertionError):
        net.flwr("list", "gate")
    assert role.said("POST /v1/control/register-node: 403")
    assert role.said("POST /v1/control/list-runs: 403")
    net.register("intruder")  # which would fail, had it been registered


def test_strangers_stay_out_at_the_gate_too(
    net: Net, gate: tuple[Role, int], tmp_path: Path
) -> None:
    """A key that is not registered or another authority: never online, and their logs say why."""
    _, port = gate
    before = net.online()
    unknown = net.node("unknown")
    other = net.node("other", certificate=authority(tmp_path) / "public/ca.crt")
    net.register("other")
    words = {unknown: "Failed to activate SuperNode", other: "CERTIFICATE_VERIFY_FAILED"}
    try:
        for node, text in words.items():
            behind(port, node)
            wait_for(f"{node.client} is turned away", lambda n=node, t=text: n.said(t), 60)
        assert net.online() == before
    finally:
        for node in words:
            node.kill()
