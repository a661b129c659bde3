"""The ServerApp: the same coordinator under Flower's own engines."""

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from rich.console import Console

import strategies
from fedlora import settings
from fedlora.progress import Progress
from fedlora.resident import Resident
from fedlora.runs import RunDir
from server.loop import Coordinator
from server.result import finish, tell

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """`flwr run .`: the configuration is Flower's run-config, what is printed goes to its log."""
    tree = settings.from_flat(context.run_config)
    config, strategy = settings.resolve(tree, strategies.load, ignore=strategies.settings())
    resident = Resident(config, strategy)
    run = RunDir.create(config)
    with Progress(config.run.rounds, Console(), run.path / "log.txt") as observer:
        nodes, clients = len(list(grid.get_node_ids())), len(resident.federation.clients)
        if nodes < clients:
            observer.note(
                f"the data makes {clients} clients, but only {nodes} nodes are here: the rows of "
                "the rest are not used (--num-supernodes of flwr federation simulation-config)"
            )
        coordinator = Coordinator(grid, resident, run, observer)
        coordinator.serve()
    finish(resident, run, coordinator.state)
    tell(run, Console())
