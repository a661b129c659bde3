"""`fedlora evaluate`: a finished run's model on rows."""

import json
import math
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fedlora.cli import app

Run = Annotated[str, typer.Argument(help="A run's name or directory.")]
Client = Annotated[
    str | None, typer.Option(metavar="ID", help="This client's own, personalised model.")
]


@app.command()
def evaluate(
    run: Run,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[data.key=value …] [generate.key=value …]", show_default=False),
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="Other rows than the run's test rows.")
    ] = None,
    client: Client = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Score the global model, or a client's own, on the run's test rows or on others: every row of
    a file. With generate.rows=N a language model answers N of them, too."""
    from fedlora import settings
    from simulations import scoring

    given = settings.parse(arguments or [])
    found = scoring.evaluate(run, given, data, client)
    if as_json:
        known = {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in found.items()}
        print(json.dumps(known, indent=2))
        return
    Console().print(_table(found))


def _table(found: dict[str, Any]) -> Table:
    from fedlora.report import number, plain_table

    table = plain_table("model", str(found.pop("model")))
    table.columns[0].justify = "left"
    for name, value in found.items():
        shown = number(value, 4) if isinstance(value, float) else f"{value:,}"
        table.add_row(name.replace("_", " "), shown)
    return table
