"""`fedlora run`: a federation on this machine."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from fedlora.cli import Settings, app, resumed, tree_of, watch


@app.command()
def run(
    arguments: Settings = None,
    resume: Annotated[
        str | None, typer.Option(metavar="RUN", help="Continue this run from its last round.")
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Where the time went: a table, and profile.json.")
    ] = False,
) -> None:
    """Federate a model over data on this machine. Without a configuration: MiniLM on the bundled
    sentiment data, one client a domain, FedEx-LoRA."""
    from fedlora import profile as profiling

    recorded = profiling.Profile() if profile else None
    with profiling.recording(recorded):
        done = _federated(arguments, resume)
    if recorded:
        _tell_profile(recorded, done.path)


def _federated(arguments: list[str] | None, resume: str | None) -> Any:
    """The directory of a run that was made, and told of."""
    from fedlora import profile
    from simulations import nursery

    nursery.warm()

    with profile.span("load"):
        from fedlora import settings
        from server.result import tell
        from simulations.run import pool, simulate
        from strategies import load

    tree = tree_of(arguments)
    previous = None
    if resume is not None:
        previous, tree = resumed(resume, tree)
    config, strategy = settings.resolve(tree, load)
    with pool(config) as workers:
        done = simulate(config, strategy, workers, watch(config), previous)
    tell(done, Console())
    return done


def _tell_profile(recorded: Any, folder: Path) -> None:
    from fedlora import profile, report

    recorded.end()
    recorded.write(folder / "profile.json")
    report.show(profile.table(recorded), Console())
    print(f"profile: {folder / 'profile.json'}")
