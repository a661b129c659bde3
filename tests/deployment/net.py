"""A whole deployment on loopback: superlink with TLS and known keys, superexec, nodes, submissions.

    net = Net(folder, world, ["books", "films"])
    net.start()
    run = net.submit("run", rounds...)      # fedlora submit, in a process
    net.nodes["books"].cut()                # its link to the superlink
    net.kill_superlink(); net.restart_superlink()

Everything is in `folder`: keys, logs, the nodes' state, the server's runs and those brought back.
"""

import json
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

import strategies
from clients import keys
from fedlora import settings
from fedlora.tensors import Tensors
from simulations.divide import divide
from tests.deployment.processes import Link, Role, end, free_port, marked, wait_for
from tests.federation import ROWS, World

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BIN = Path(sys.executable).parent
ENV = {
    "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
    "OMP_NUM_THREADS": "1",
    "PYTHONUNBUFFERED": "1",
    "PYTHONPATH": f"{HERE / 'methods'}{os.pathsep}{ROOT}",  # the code that is tested
    "TOKENIZERS_PARALLELISM": "false",
}
METHODS = "fedit,ffa,fedex,fedsa,fedsb,fslora,held:HeldFedEx,held:HeldFedSA,held:Digested"


def authority(folder: Path) -> Path:
    """A certificate authority, the superlink's certificate and the superexec's secret."""
    for part in ("ca", "superlink", "secret", "public"):  # volumes, in docker-compose.yml
        (folder / part).mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(ROOT / "deploy/certificates.py"), str(folder)]
    env = {**os.environ, "NAMES": "127.0.0.1"}
    subprocess.run(command, check=True, timeout=60, env=env)
    return folder


class Node(Role):
    """A data owner's node, behind a link of its own."""

    def __init__(
        self,
        net: "Net",
        client: str,
        config: Mapping[str, Any] | None = None,
        certificate: Path | None = None,
        private: Path | None = None,
    ) -> None:
        folder = net.folder / "nodes" / client
        self.client, self.state, self.hold = client, folder / "state", folder / "hold"
        self.hold.mkdir(parents=True, exist_ok=True)
        self.link = Link(net.port)
        given = {
            "client": client,
            "data": str(net.rows / f"{client}.jsonl"),
            "model": str(net.world.model),
            "state-dir": str(self.state),
            "methods": METHODS,
            "threads": 1,
            **(config or {}),
        }
        words = " ".join(f"{k}={json.dumps(v)}" for k, v in given.items())
        command = [str(BIN / "fedlora"), "node", "start", f"--node-config={words}"]
        command += [f"--superlink=127.0.0.1:{self.link.port}"]
        command += [f"--root-certificates={certificate or net.ca}"]
        command += [f"--key={private}"] if private else []
        env = {**ENV, "FLWR_HOME": str(folder / "flwr"), "HOLD": str(self.hold)}
        super().__init__(client, command, folder, env)

    def start(self) -> None:
        if not self.link.open:
            self.link.join()
        super().start()

    def revive(self, seconds: float = 120) -> None:
        """Start again, and again whenever it gives up, as a service manager does it."""

        def connected() -> bool:
            if self.code is not None:
                super(Node, self).start()
            return self.text()[before:].count(ACTIVE) > 0

        before = len(self.text())
        self.start()
        wait_for(f"{self.client} is back", connected, seconds)

    def held(self, round: int) -> Path:
        """From now on its training of this round waits, until the file is removed."""
        file = self.hold / f"round-{round}"
        file.with_suffix(".reached").unlink(missing_ok=True)
        file.touch()
        return file

    def reached(self, round: int, seconds: float = 300) -> None:
        file = self.hold / f"round-{round}.reached"
        wait_for(f"{self.client} trains in round {round}", file.exists, seconds)


ACTIVE = "SuperNode ID:"  # what a node logs once the superlink has taken it


class Net:
    """The deployment. `rows` holds one file a client, and the server's own."""

    def __init__(self, folder: Path, world: World, clients: Iterable[str]) -> None:
        self.folder, self.world, self.port = folder, world, free_port()
        clients = list(clients)
        self.rows = folder / "rows"
        self.runs, self.results = folder / "server-runs", folder / "results"
        self.simulations = folder / "simulations"
        config, _ = settings.resolve(self.tree("rows", "fedex"), strategies.load)
        divide(self.rows, config.data, config.run.seed)
        pki = authority(folder / "pki")
        self.ca = pki / "public/ca.crt"
        secret = f"--superexec-auth-secret-file={pki / 'secret/superexec'}"
        address = f"127.0.0.1:{self.port}"
        given = [f"--host=127.0.0.1 --port={self.port} --isolation=process {secret}"]
        given += [f"--ssl-ca-certfile={self.ca} --ssl-certfile={pki / 'superlink/server.crt'}"]
        given += [f"--ssl-keyfile={pki / 'superlink/server.key'} --enable-supernode-auth"]
        given += [f"--database={folder / 'superlink.db'} --disable-runtime-dependency-installation"]
        self.superlink = self._role("superlink", ["flower-superlink", *" ".join(given).split()])
        given = [f"--runtime-api-address={address}", f"--root-certificates={self.ca}", secret]
        self.superexec = self._role("superexec", ["flower-superexec", *given])
        self.flwr_home = folder / "driver-flwr"
        self.flwr_home.mkdir()
        (self.flwr_home / "config.toml").write_text(
            f'[superlink.net]\naddress = "{address}"\nroot-certificates = "{self.ca}"\n'
        )
        self.nodes = {client: self.node(client) for client in clients}

    def node(
        self, client: str, config: Mapping[str, Any] | None = None, certificate: Path | None = None
    ) -> Node:
        """A node with a key of its own; not started, nor is the key registered."""
        private = self.folder / "keys" / client
        private.parent.mkdir(exist_ok=True)
        keys.make(private)
        return Node(self, client, config, certificate, private)

    def start(self) -> None:
        self.superlink.start()
        wait_for("the superlink answers", self.answers, 60)
        self.superexec.start()
        for client, node in self.nodes.items():
            self.register(client)
            node.start()

    def stop(self) -> None:
        end(marked(str(self.folder)))
        for node in self.nodes.values():
            node.link.cut()

    def answers(self) -> bool:
        """Whether the superlink speaks TLS with somebody who knows its authority."""
        context = ssl.create_default_context(cafile=str(self.ca))
        try:
            with socket.create_connection(("127.0.0.1", self.port), 2) as link:
                context.wrap_socket(link, server_hostname="127.0.0.1").close()
        except OSError:
            return False
        return True

    def kill_superlink(self) -> None:
        """It is gone, and its port with it: nodes that try are refused."""
        for node in self.nodes.values():
            node.link.cut()
        self.superlink.kill()

    def restart_superlink(self) -> None:
        self.superlink.start()
        wait_for("the superlink answers", self.answers, 60)
        for node in self.nodes.values():
            node.link.join()

    def register(self, client: str) -> None:
        self.flwr("supernode", "register", f"{self.folder / 'keys' / client}.pub", "net")

    def flwr(self, *words: str) -> str:
        """Flower's command line, as its operator would use it."""
        done = subprocess.run(
            [str(BIN / "flwr"), *words],
            env={**os.environ, **ENV, "FLWR_HOME": str(self.flwr_home)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def online(self) -> int:
        """How many nodes the superlink holds to be there."""
        text = self.flwr("supernode", "list", "net", "--format", "json")
        found = json.loads(text)["nodes"]
        return sum(n["status"] == "online" for n in found)

    def submit(self, name: str, method: str = "fedex", resume: bool = False, **given: Any) -> Role:
        """`fedlora submit` of a small run; keys have `__` for the dot."""
        tree = self.tree(name, method, **given)
        command = ["fedlora", "submit", "--to=net"]
        command += [f"--resume={self.results / name}"] if resume else self._words(tree)
        role = self._role(f"submit-{name}{'-again' * resume}", command)
        role.start()
        return role

    def tree(self, name: str, method: str, **given: Any) -> settings.Tree:
        """The settings of a run, in a deployment and in a simulation."""
        flat = {
            "strategy.name": method,
            "run.name": name,
            "run.min_clients": len(ROWS),
            "run.deadline": 240.0,
            "simulation.workers": 1,
            "simulation.copies": 1,  # as on nodes, which train one client each
            **{k.replace("__", ".", 1): v for k, v in given.items()},
        }
        return self.world.tree(self.results, flat)

    def simulated(self, name: str, method: str = "fedex", **given: Any) -> Role:
        """`fedlora run` of what `submit` would submit."""
        words = self._words(self.tree(name, method, **given, run__dir=str(self.simulations)))
        role = self._role(f"run-{name}", ["fedlora", "run", *words])
        role.start()
        return role

    def state(self, run: Path, round: int) -> Tensors:
        """The server's state after a round."""
        return load_file(run / f"round-{round:04d}" / "state.safetensors")

    def metrics(self, run: Path) -> list[dict[str, Any]]:
        """The rounds' rows, as far as the run has come."""
        path = run / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [row for row in map(json.loads, lines) if row["kind"] == "round"]

    def experiment(self, name: str) -> str:
        """The id under which nodes keep what stays with them."""
        return str(json.loads((self.runs / name / "run.json").read_text())["experiment"])

    def logged(self, name: str) -> str:
        path = self.runs / name / "log.txt"
        return path.read_text() if path.exists() else ""

    def wait_round(self, name: str, round: int, seconds: float = 120) -> None:
        def there() -> bool:
            return any(row["round"] == round for row in self.metrics(self.runs / name))

        wait_for(f"round {round} of {name}", there, seconds)

    def _words(self, tree: settings.Tree) -> list[str]:
        flat = [(f"{s}.{k}", v) for s, table in tree.items() for k, v in table.items()]
        return [f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in flat]

    def _role(self, name: str, command: list[str]) -> Role:
        env = {**ENV, "FLWR_HOME": str(self.folder / f"{name}-flwr")}
        if name.startswith("submit"):
            env["FLWR_HOME"] = str(self.flwr_home)
        env["FEDLORA_RUNS"] = str(self.runs)
        return Role(name, [str(BIN / command[0]), *command[1:]], self.folder, env)
