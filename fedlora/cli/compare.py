"""`fedlora compare`: several methods side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from fedlora.cli import Settings, app, split, watch
from fedlora.errors import Failed, Stopped, UserError
from fedlora.untrusted import LONG, plain

if TYPE_CHECKING:
    from fedlora.comparison import Result


@app.command()
def compare(
    arguments: Settings = None,
    names: Annotated[
        str | None,
        typer.Option(
            "--strategies",
            help="The methods, with commas between; the others are tested against the first. "
            "By default fedit,ffa,fedex,fedsa,fedsb,fslora.",
        ),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(help="Each method is run once a seed: 0,1,2. Default: run.seed.")
    ] = None,
    baselines: Annotated[
        bool, typer.Option(help="Run centralised and local as well.", show_default=True)
    ] = True,
    resume: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Go on with a comparison that was stopped.")
    ] = None,
) -> None:
    """Run several methods from the same seeds, data and rows, beside two baselines. A setting for
    one method alone has its name in front: fedsb.adapter.rank=32."""
    from fedlora import settings
    from simulations import series

    if resume is None:
        path, overrides = split(arguments)
        given = settings.read(path, []), settings.parse(overrides)
        plan = series.planned(*given, names, seeds, baselines)
        folder = series.place(plan)
        left = series.contenders(plan, folder)  # every mistake is found before anything trains
        series.create(folder, plan)
    elif arguments or names or seeds or not baselines:
        raise UserError("a resumed comparison keeps its methods, seeds and settings: give none")
    else:
        folder, plan = series.opened(resume)
        left = series.contenders(plan, folder)
        for note in series.same(folder, plan) if left else []:
            _say(note)
    go_on = f"go on with: fedlora compare --resume {folder}"
    try:
        failed = series.carry_out(folder, plan, left, watch, _say)
    except (KeyboardInterrupt, Stopped):
        raise Stopped(f"stopped; {go_on}") from None
    except UserError as e:
        raise UserError(f"{e}\nwhat was done is kept; {go_on}") from None
    if found := series.results(folder, plan):
        _show(found, folder)
    if failed:
        raise Failed("\n".join([*failed, f"what was done is kept; {go_on}"]))


def _show(found: "Sequence[Result]", folder: Path) -> None:
    """The tables, what has to be known of them, and where things are."""
    from fedlora import comparison, report, tables

    console = Console()
    for table in tables.cells(found):
        report.show(tables.console(table), console)
    for line in comparison.remarks(found):
        console.print(plain(line, LONG), markup=False, emoji=False, highlight=False, soft_wrap=True)
    print(f"tables: {folder}/comparison.csv, .md, .tex; runs.csv")
    print(f"picture: {folder / 'comparison.png'}")
    print(f"for a page of it all: fedlora report {folder}")


def _say(line: str) -> None:
    print(plain(line, LONG), flush=True)
