"""A federation on this machine: worker processes for the clients, the coordinator here."""

import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from fedlora import report
from fedlora.config import Config
from fedlora.errors import UserError
from fedlora.export import save_peft
from fedlora.progress import Observer
from fedlora.resident import Resident
from fedlora.runs import RunDir
from fedlora.strategy import Strategy
from server.loop import Coordinator
from simulations.grid import InProcessGrid
from simulations.pool import Pool
from simulations.results import load_global

Watch = Callable[[Path], AbstractContextManager[Observer]]


def pool(config: Config) -> Pool:
    """As many workers as the configuration says, by default one a core."""
    workers = config.simulation.workers
    return Pool((os.cpu_count() or 1) if workers is None else workers, config.simulation.threads)


def simulate(
    config: Config, strategy: Strategy, pool: Pool, watch: Watch, run: RunDir | None = None
) -> RunDir:
    """Run a federation to its end, or on from where `run` stopped; leaves the run directory with
    the adapter and the picture in it. A run that fails before its first round leaves nothing."""
    resident = Resident(config, strategy)
    clients = len(resident.federation.clients)
    _ = resident.adapter  # a wrong model or target is said before anything is written
    fresh = run is None
    run = run or RunDir.create(config)
    grid = InProcessGrid(config, clients, run.path / "clients", pool)
    try:
        with watch(run.path / "log.txt") as observer:
            coordinator = Coordinator(grid, resident, run, observer)
            coordinator.serve()
    except UserError:
        if fresh and not run.rounds():
            shutil.rmtree(run.path)
        raise
    finish(coordinator)
    return run


def finish(coordinator: Coordinator) -> None:
    """The final adapter as plain PEFT, and the curves."""
    resident, run = coordinator.resident, coordinator.run
    load_global(resident, coordinator.state)
    folder = run.path / "adapter"
    shutil.rmtree(folder, ignore_errors=True)  # of a run that is done again from its last round
    name, task = resident.config.model.name, resident.task
    save_peft(resident.adapter, folder, name, task.type, task.tokenizer)
    report.curves(report.load(run.metrics), run.path / "curves.png")
