"""A deployment of docker-compose.yml that is up: commands to it, and what it says.

COMPOSE is the command that Compose is called by. Every call has a deadline, in seconds.
"""

import json
import os
import shlex
import subprocess
import time
from collections.abc import Callable
from typing import Any

COMPOSE = shlex.split(os.environ.get("COMPOSE", "docker compose"))
NODES = {"node-1": "editorials", "node-2": "films", "node-3": "products", "node-4": "tweets"}
SMALL = (
    "train.steps=3",
    "data.rows=100",
    "data.holdout=0.05",
    "data.test=0.01",
    "data.max_length=16",
    "run.deadline=240",
)


def run(*command: str, deadline: float = 120) -> str:
    """What a command prints; it must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=deadline)
    assert done.returncode == 0, (
        f"{shlex.join(command)}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    )
    return done.stdout


def compose(*command: str, deadline: float = 120) -> str:
    return run(*COMPOSE, *command, deadline=deadline)


def inside(service: str, *command: str) -> str:
    """What a command prints in a service's container."""
    return compose("exec", "-T", service, *command)


def container(service: str) -> str:
    """The id of a service's container."""
    return compose("ps", "--all", "--quiet", service).strip()


def inspect(*names: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(run("docker", "inspect", *names))
    return found


def logs(*services: str) -> str:
    return compose("logs", "--no-color", "--no-log-prefix", *services)


def driver(*settings: str) -> "subprocess.Popen[str]":
    """A small run, begun: four clients, unless the settings say otherwise."""
    command = [*COMPOSE, "run", "--rm", "-T", "--no-deps", "driver", *SMALL, *settings]
    return subprocess.Popen(
        command,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
    )


def ended(process: "subprocess.Popen[str]", deadline: float = 420) -> tuple[int, str]:
    """A run's exit code and what it printed."""
    try:
        printed, _ = process.communicate(timeout=deadline)
    except subprocess.TimeoutExpired:
        process.terminate()
        printed, _ = process.communicate(timeout=60)
        raise AssertionError(f"still running after {deadline} s: {printed[-3000:]}") from None
    return process.returncode, printed


def brought_back(name: str, file: str) -> str:
    """A file of the run directory that the driver got."""
    path = f"/results/{name}/{file}"
    return compose("run", "--rm", "-T", "--no-deps", "--entrypoint", "cat", "driver", path)


def clients_of(name: str, round: int) -> set[str]:
    """The clients that trained in a round, by the run directory that came back."""
    rows = [json.loads(line) for line in brought_back(name, "metrics.jsonl").splitlines()]
    return {r["client"] for r in rows if r["kind"] == "client" and r["round"] == round}


def committed(name: str, round: int) -> bool:
    """Whether the server has committed a round of a run."""
    folder = f"/runs/{name}/round-{round:04d}"
    command = [*COMPOSE, "exec", "-T", "superexec", "test", "-d", folder]
    return subprocess.run(command, capture_output=True, timeout=60).returncode == 0


def online() -> set[str]:
    """The ids of the nodes that the superlink takes for present."""
    listed = inside(
        "superlink", "/src/deploy/steer.sh", "flwr", "supernode", "list", "superlink",
        "--format", "json",
    )  # fmt: skip
    nodes = json.loads(listed)["nodes"]
    return {node["node-id"] for node in nodes if node["status"] == "online"}


def wait_for(what: str, condition: Callable[[], object], deadline: float = 180) -> None:
    """Return once the condition holds; fail when it does not in time."""
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end, f"not within {deadline} s: {what}"
        time.sleep(1)
