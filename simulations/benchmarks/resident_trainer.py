"""What the resident trainer saves: a message's arrival to its first step, and a whole round.

`python -m simulations.benchmarks.resident_trainer [--rounds 4] [--repeats 2] [--json FILE]` starts
a superlink and one node of Flower's own on loopback and runs the same federation on them with
either app, by turns: `clients.app:app`, which loads model and rows for every message, as Flower
starts a process for each; and `clients.proxy:app`, which hands messages to the resident trainer.
MiniLM and 600 of the bundled rows, one thread. A run's first round is left out of both: there the
trainer is started.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table
from torch.optim.optimizer import register_optimizer_step_pre_hook

import strategies
from clients.node import free_port
from fedlora import report, settings
from fedlora.config import Config
from fedlora.data import load
from server import bundle
from server.flower import Connection
from simulations.benchmarks.timing import spread
from strategies.fedit import FedIT

APPS = {"an app that loads all": "clients.app:app", "resident trainer": "clients.proxy:app"}
ROWS, TEST = 600, 64
DEADLINE = 600.0  # seconds for a run
START = 60.0  # seconds for the superlink to come up
LOOK = 0.02  # seconds between looks at the processes


class Clocked(FedIT):
    """FedIT that notes when a round's first optimizer step comes (client side)."""

    def trains(self, round: Any) -> set[str]:
        note = Path(os.environ["FEDLORA_CLOCK"]) / f"{round.number}"

        def noted(*_: Any) -> None:
            if not note.exists():
                note.write_text(str(time.time()))

        register_optimizer_step_pre_hook(noted)  # one more a round: nothing beside a step
        return super().trains(round)


def world(folder: Path) -> None:
    """The node's rows and the server's, out of the bundled data."""
    federation = load(Config().data, 0)
    names = federation.labels
    for path, rows in (
        (folder / "node" / "rows.jsonl", federation.train("tweets").select(range(ROWS))),
        (folder / "server" / "test.jsonl", federation.test.select(range(TEST))),
    ):
        path.parent.mkdir()
        lines = [json.dumps({"text": r["text"], "label": names[r["label"]]}) for r in rows]
        path.write_text("\n".join(lines) + "\n")


def configuration(folder: Path, rounds: int) -> Config:
    name = f"{__spec__.name if __spec__ else __name__}:Clocked"
    tree = settings.parse(
        [
            f"strategy.name={name}",
            f"run.rounds={rounds}",
            f"data.name={folder / 'server'}",
            "data.partition=split",
            "train.steps=5",
        ]
    )
    return settings.resolve(tree, strategies.load)[0]


@contextmanager
def process(name: str, arguments: list[str], folder: Path, env: dict[str, str]) -> Iterator[None]:
    """One of Flower's programs, ended by its id, and its children with it."""
    with (folder / f"{name}.log").open("w") as log:
        command = [str(Path(sys.executable).with_name(name)), *arguments]
        started = subprocess.Popen(command, stdout=log, stderr=log, env=env)
        try:
            yield
        finally:
            family = [*psutil.Process(started.pid).children(recursive=True), started]
            for member in family:
                with suppress(psutil.NoSuchProcess):
                    member.terminate()
            started.wait(30)


class Arrivals:
    """When the processes began that Flower starts for messages, as the system has it."""

    def __init__(self) -> None:
        self.times: set[float] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "Arrivals":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def before(self, moment: float) -> float:
        """The latest one before a moment."""
        return max(t for t in self.times if t < moment)

    def _look(self) -> None:
        while not self._over.wait(LOOK):
            for found in psutil.process_iter(["cmdline", "create_time"]):
                if any(w.endswith("flwr-clientapp") for w in (found.info["cmdline"] or [])[:2]):
                    self.times.add(found.info["create_time"])


def link_up() -> None:
    until = time.monotonic() + START
    while fault := Connection.named("benchmark").fault():
        if time.monotonic() > until:
            raise SystemExit(fault)
        time.sleep(LOOK)


def run(app: str, config: Config, folder: Path, name: str) -> dict[str, list[float]]:
    """Seconds of each round but the first: until the first step, and as a whole."""
    for note in (folder / "clock").iterdir():
        note.unlink()
    made = folder / f"bundle-{name}"
    made.mkdir()
    config = config.model_copy(update={"run": config.run.model_copy(update={"name": name})})
    bundle.write(config, made, name, resume=False)
    project = made / "pyproject.toml"
    project.write_text(project.read_text().replace(bundle.CLIENTAPP, app))
    connection = Connection.named("benchmark")
    with Arrivals() as arrivals:
        id, until = connection.start(made), time.monotonic() + DEADLINE
        while not (status := connection.status(id)).finished and time.monotonic() < until:
            time.sleep(1)
    if not status.completed:
        logs = "\n".join(log.read_text()[-2000:] for log in folder.glob("*.log"))
        raise SystemExit(f"{logs}\nthe run ended as {status.text}: {status.details}")
    rows = report.rounds_of(report.load(folder / "runs" / name / "metrics.jsonl"))
    later = [row for row in rows if row["round"] > 1]
    if any(row["failed"] or row["dropped"] for row in later):
        raise SystemExit(f"the client was missing in a round: {later}")
    steps = [float((folder / "clock" / str(row["round"])).read_text()) for row in later]
    return {
        "first step": [step - arrivals.before(step) for step in steps],
        "round": [row["seconds"] for row in later],
    }


def measure(rounds: int, repeats: int, folder: Path) -> dict[str, dict[str, list[float]]]:
    """Seconds by app and what was measured."""
    world(folder)
    port, own = free_port(), free_port()
    for made in ("flwr", "clock", "runs", "state"):
        (folder / made).mkdir(mode=0o700)
    (folder / "flwr" / "config.toml").write_text(
        f'[superlink.benchmark]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    env = os.environ | {
        "FLWR_HOME": str(folder / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FEDLORA_RUNS": str(folder / "runs"),
        "FEDLORA_CLOCK": str(folder / "clock"),
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    os.environ["FLWR_HOME"] = env["FLWR_HOME"]
    config = configuration(folder, rounds)
    owner = {
        "client": "tweets",
        "data": str(folder / "node" / "rows.jsonl"),
        "state-dir": str(folder / "state"),
        "methods": config.method,
        "threads": 1,
        "idle": 60,  # the trainer outlives its node, and then ends by itself
    }
    words = " ".join(f"{key}={json.dumps(value)}" for key, value in owner.items())
    found: dict[str, dict[str, list[float]]] = {
        name: {"first step": [], "round": []} for name in APPS
    }
    with ExitStack() as running:
        link = ["--insecure", f"--port={port}", "--disable-runtime-dependency-installation"]
        running.enter_context(process("flower-superlink", link, folder, env))
        link_up()
        node = ["--insecure", f"--superlink=127.0.0.1:{port}", f"--port={own}"]
        running.enter_context(
            process("flower-supernode", [*node, f"--node-config={words}"], folder, env)
        )
        for repeat in range(repeats):
            for index, (name, app) in enumerate(APPS.items()):
                for what, seconds in run(app, config, folder, f"{index}-{repeat}").items():
                    found[name][what] += seconds
    return found


def table(found: dict[str, dict[str, list[float]]]) -> Table:
    made = Table("seconds, median (quartiles)", *APPS, "saved")
    for what in ("first step", "round"):
        spreads = [spread(found[name][what]) for name in APPS]
        cells = [f"{s.median:.2f} ({s.low:.2f}–{s.high:.2f})" for s in spreads]
        made.add_row(what, *cells, f"{spreads[0].median - spreads[1].median:.2f}")
    return made


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=4, help="of each run, two at least")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each app, by turns")
    parser.add_argument("--json", type=Path, help="where to write all seconds")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="fedlora-") as folder:
        found = measure(given.rounds, given.repeats, Path(folder))
    report.show(table(found), Console())
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
