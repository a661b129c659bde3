"""The ServerApp: the same coordinator for a simulation, Flower's Ray engine and a deployment."""

import logging
import time

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

import strategies
from fedlora import settings
from fedlora.progress import LogObserver
from fedlora.resident import Resident
from fedlora.runs import RunDir
from server.loop import Coordinator

app = ServerApp()
log = logging.getLogger("fedlora.server")


@app.main()
def main(grid: Grid, context: Context) -> None:
    """`flwr run .`: the configuration is Flower's run-config, the log is the display."""
    tree = settings.from_flat(context.run_config)
    config, strategy = settings.resolve(tree, strategies.load, ignore=strategies.settings())
    resident = Resident(config, strategy)
    run = RunDir.create(config)
    started = time.monotonic()
    Coordinator(grid, resident, run, LogObserver(log)).serve()
    log.info("%s finished in %.0f s", run.path, time.monotonic() - started)
