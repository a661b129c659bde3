"""`fedlora report`: runs as one HTML page."""

from pathlib import Path
from typing import Annotated

import typer

from fedlora.cli import app


@app.command()
def report(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN…", help="Runs, by name or directory, and folders of runs."),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html",
            help="The page; by default report.html beside a single run or comparison, else here.",
        ),
    ] = None,
) -> None:
    """Write runs as one page to look at, which needs no network: curves, clients, bytes, privacy
    and what was configured. Runs that differ in their seed alone make one line with a band."""
    from fedlora.page.collect import find, read
    from fedlora.page.html import page, write

    directories, folder = find(runs)
    path = output or (folder or Path()) / "report.html"
    title = folder.resolve().name if folder else f"{len(directories)} runs"
    write(page([read(directory) for directory in directories], title), path)
    print(f"report: {path}")
