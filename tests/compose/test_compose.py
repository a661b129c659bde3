"""The deployment in containers: that a run reaches every owner, what each may do and see, and that
nodes which are lost or cut off come back. Each test begins with all four nodes online."""

import json
import subprocess
from collections.abc import Iterator

import pytest

from tests.compose import stack
from tests.compose.stack import NODES, wait_for

USER = "10001"
SECRETS = {
    "superlink": ("/secret/superexec", "/tls/server.key"),
    "superexec": ("/secret/superexec",),
    "gate": ("/tls/server.key",),
    **dict.fromkeys(NODES, ("/key/node.key",)),
}


@pytest.fixture(autouse=True)
def everyone_online() -> None:
    wait_for("four nodes online", lambda: len(stack.online()) == len(NODES))


@pytest.fixture(scope="module")
def first() -> str:
    """A run that nothing disturbs."""
    code, printed = stack.ended(stack.driver("run.name=first", "run.rounds=2"))
    assert code == 0, printed
    return "first"


def test_a_run_reaches_every_owner_and_comes_back(first: str) -> None:
    """Both rounds have all four clients, and the driver has the metrics and the adapter."""
    for round in (1, 2):
        assert stack.clients_of(first, round) == set(NODES.values())
    assert json.loads(stack.brought_back(first, "adapter/adapter_config.json"))["peft_type"]


def test_no_container_is_privileged(first: str) -> None:
    """Every container, those that ran once too, has a user of its own, no capabilities and a
    read-only root; every process in those that run is that user's."""
    containers = stack.inspect(*stack.compose("ps", "--all", "--quiet").split())
    assert len(containers) >= 10
    for found in containers:
        host = found["HostConfig"]
        assert found["Config"]["User"] == "fedlora" and not host["Privileged"], found["Name"]
        assert host["CapDrop"] == ["ALL"] and not host["CapAdd"] and host["ReadonlyRootfs"]
        assert "no-new-privileges:true" in host["SecurityOpt"]
        if found["State"]["Running"]:
            processes = stack.run("docker", "top", found["Id"], "-eo", "uid,pid").splitlines()[1:]
            assert processes and {line.split()[0] for line in processes} == {USER}


def test_secrets_are_with_their_owners_alone(first: str) -> None:
    """A secret's file is its owner's only, and its content is in no image, setting or log."""
    containers = stack.compose("ps", "--all", "--quiet").split()
    told = [
        stack.run("docker", "history", "--no-trunc", "fedlora"),
        json.dumps(stack.inspect("fedlora", *containers)),
        stack.logs(),
    ]
    for service, paths in SECRETS.items():
        for path in paths:
            assert stack.inside(service, "stat", "-c", "%a %u", path).split() == ["600", USER]
            lines = stack.inside(service, "cat", path).splitlines()
            secrets = [line for line in lines if line and not line.startswith("-----")]
            assert secrets and not any(line in text for line in secrets for text in told)


def test_nodes_reach_the_gate_and_nobody_else() -> None:
    """No two nodes share a network, none of a node's networks leads out, and the superlink is on
    none of them."""
    seen = set(stack.inspect(stack.container("superlink"))[0]["NetworkSettings"]["Networks"])
    assert len(seen) == 1
    for node in NODES:
        (name,) = stack.inspect(stack.container(node))[0]["NetworkSettings"]["Networks"]
        assert json.loads(stack.run("docker", "network", "inspect", name))[0]["Internal"]
        seen.add(name)
    assert len(seen) == 1 + len(NODES)


ASK = """
import httpx
try:
    with httpx.Client(verify="/public/ca.crt", trust_env=False) as client:
        print(client.post("https://ADDRESS:8000/v1/control/list-runs", content=b"").status_code)
except httpx.ConnectError:
    print("not reached")
"""


@pytest.mark.parametrize(("address", "outcome"), [("gate", "403"), ("superlink", "not reached")])
def test_a_node_cannot_steer(address: str, outcome: str) -> None:
    """What starts runs and registers keys is refused at the gate, and the superlink is out of
    reach."""
    asked = stack.inside("node-1", "python", "-c", ASK.replace("ADDRESS", address))
    assert asked.strip() == outcome


def test_a_run_that_fails_fails_the_driver() -> None:
    """A model that is not there: the driver says so and does not exit 0."""
    code, printed = stack.ended(stack.driver("run.name=failing", "model.name=/no/such/model"))
    assert code == 1 and "/no/such/model" in printed


@pytest.fixture
def stranger(request: pytest.FixtureRequest) -> Iterator[str]:
    """A fifth node, on the network of the first, with what a shell command prepares; its id."""
    start = (
        "mkdir /tmp/own && cd /tmp/own && fedlora node key node.key && "
        "python /src/deploy/certificates.py /tmp/own >/dev/null; exec fedlora node start "
        f"--superlink gate:8000 --root-certificates {request.param} --key node.key "
        """--node-config 'client="fifth" data="sentiment" state-dir="/tmp/own/state"'"""
    )
    started = ["run", "--detach", "--no-deps", "--entrypoint", "sh", "node-1", "-c", start]
    id = stack.compose(*started).split()[-1]
    yield id
    stack.run("docker", "rm", "--force", "--volumes", id)


def said(id: str) -> str:
    done = subprocess.run(["docker", "logs", id], capture_output=True, text=True, timeout=60)
    return (done.stdout + done.stderr).lower()


@pytest.mark.parametrize(
    ("stranger", "reason"),
    [
        ("/public/ca.crt", "failed to activate supernode"),
        ("/tmp/own/public/ca.crt", "certificate_verify_failed"),
    ],
    indirect=["stranger"],
    ids=["unregistered key", "another authority"],
)
def test_a_stranger_stays_out(stranger: str, reason: str) -> None:
    """A node whose key is not registered, or which trusts another authority, never gets online,
    and its log says why."""
    before = stack.online()
    wait_for(f"{reason} in its log", lambda: reason in said(stranger))
    assert stack.online() == before


def test_a_killed_node_is_back_in_the_same_run() -> None:
    """A node whose processes all die in a run is started again, and the last round has it."""
    run = stack.driver("run.name=killed", "run.rounds=4")
    wait_for("round 1", lambda: stack.committed("killed", 1))
    subprocess.run(
        [*stack.COMPOSE, "exec", "-T", "node-3", "sh", "-c", "kill -9 -1"],
        capture_output=True,
        timeout=60,
    )
    code, printed = stack.ended(run)
    assert code == 0, printed
    assert stack.clients_of("killed", 4) == set(NODES.values())
    assert stack.inspect(stack.container("node-3"))[0]["RestartCount"] >= 1


def test_a_node_that_was_cut_off_is_back_in_the_same_run() -> None:
    """FedEx: a node without network for a round gets what it lacks, and the last round has it."""
    name = stack.container("node-2")
    (network,) = stack.inspect(name)[0]["NetworkSettings"]["Networks"]
    run = stack.driver("run.name=cut", "run.rounds=4")
    wait_for("round 1", lambda: stack.committed("cut", 1))
    stack.run("docker", "network", "disconnect", network, name)
    try:
        wait_for("round 2", lambda: stack.committed("cut", 2))
    finally:
        stack.run("docker", "network", "connect", network, name)
    code, printed = stack.ended(run)
    assert code == 0, printed
    assert stack.clients_of("cut", 4) == set(NODES.values())
