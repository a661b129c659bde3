"""`fedlora submit`: a run on real nodes."""

from typing import Annotated

import typer
from rich.console import Console

from fedlora.cli import Settings, app, resumed, tree_of


@app.command()
def submit(
    to: Annotated[
        str,
        typer.Option(
            metavar="CONNECTION", help="The superlink: a name in Flower's config.toml ($FLWR_HOME)."
        ),
    ],
    arguments: Settings = None,
    resume: Annotated[
        str | None, typer.Option(metavar="RUN", help="Continue this run from its last round.")
    ] = None,
) -> None:
    """Federate a model over data that stays on its owners' nodes. Paths in the configuration are
    the server's and the nodes'; the run directory is brought back at the end."""
    from fedlora import settings
    from fedlora.progress import Progress
    from server.result import tell
    from server.submit import submit as start
    from strategies import load

    tree, previous = tree_of(arguments), None
    if resume is not None:
        previous, tree = resumed(resume, tree)
    config, _ = settings.resolve(tree, load)
    with Progress(config.run.rounds, Console(), None) as observer:
        run = start(config, to, observer, previous)
    tell(run, Console())
