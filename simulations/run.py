"""A federation on this machine: worker processes for the clients, the coordinator here."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch

from fedlora import files, settings
from fedlora.config import Config
from fedlora.device import cards, placed
from fedlora.errors import Failed, Stopped, UserError
from fedlora.privacy import plan
from fedlora.progress import Observer
from fedlora.resident import Resident
from fedlora.runs import RunDir
from fedlora.strategy import Strategy
from server import origin
from server.agreement import check_names
from server.loop import Coordinator
from server.result import finish
from simulations import plan as stacking
from simulations.grid import InProcessGrid
from simulations.pool import Pool
from simulations.shares import Shares

Watch = Callable[[Path], AbstractContextManager[Observer]]


def pool(config: Config) -> Pool:
    """As many workers as the configuration says."""
    simulation = config.simulation
    device = placed(simulation.device)
    return Pool(stacking.workers(config), simulation.threads, device, cards(device))


def simulate(
    config: Config, strategy: Strategy, pool: Pool, watch: Watch, run: RunDir | None = None
) -> RunDir:
    """Run a federation to its end, or on from where `run` stopped; leaves the run directory with
    the adapter and the picture in it. A run that fails before its first round leaves nothing."""
    resident = Resident(config, strategy)
    clients = len(resident.federation.clients)
    if not clients:
        raise UserError(
            f"{config.data.name} holds the server's rows alone and makes no clients, so there is "
            "nobody to simulate: put one file a client there, or start nodes with rows of their own"
        )
    check_names(resident.federation.clients)
    plan.check_clients(config, resident.federation.examples)
    # A wrong model or target, or rows that teach nothing, are said before anything is written.
    _ = resident.adapter, resident.verified
    config, apart = stacking.chosen(resident)
    resident.config = config
    if stacking.rests(config):
        resident.rest()
    fresh = run is None
    run = run or RunDir.create(config)
    go_on = f"go on with: fedlora run --resume {run.path}"
    try:
        notes = origin.begun(run, resident)
        settings.write(config, run.path / "config.toml")  # a resumed run may have more rounds now
        resident.share(run.path / "clients")  # before workers look for it, each for itself
        grid = InProcessGrid(config, clients, run.path / "clients", pool)
        # One thread here too: the server works while the workers do, and idle OpenMP threads that
        # wait for a busy core make it several times slower.
        with watch(run.path / "log.txt") as observer, threads(config.simulation.threads):
            if apart:
                notes += [f"clients go one after another, as they cannot share passes: {apart}"]
            for note in notes:
                observer.note(note)
            rows = len(resident.federation.test)
            rate = Shares(pool, run, rows, grid.context(1)) if pool.workers else None
            coordinator = Coordinator(grid, resident, run, observer, rate)
            coordinator.serve()
        finish(resident, run, coordinator.state)
    except (UserError, OSError) as e:
        if fresh and not run.rounds():
            shutil.rmtree(run.path)
        elif isinstance(e, OSError):
            raise Failed(f"{files.trouble(e)}; {go_on}") from e
        raise
    except KeyboardInterrupt:
        raise Stopped(f"stopped; {go_on}") from None
    return run


@contextmanager
def threads(count: int) -> Iterator[None]:
    """This process's torch on that many threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
