"""`fedlora new-strategy`: the first files of a method of one's own."""

from pathlib import Path
from typing import Annotated

import typer

from fedlora.cli import app
from fedlora.errors import UserError


@app.command("new-strategy")
def new_strategy(
    name: Annotated[str, typer.Argument(help="In CamelCase or snake_case: DampedMean.")],
    directory: Annotated[
        Path, typer.Option(metavar="DIR", help="Where to; made if it is missing.")
    ] = Path("."),
) -> None:
    """Write a method of your own that runs: a class, its test and a configuration."""
    from fedlora import scaffold
    from strategies import BUILTIN

    module, _ = scaffold.names(name)
    if module.replace("_", "") in BUILTIN:
        raise UserError(f"'{module}' is a method that comes with fedlora: choose another name")
    method, test, config = scaffold.new_strategy(name, directory)
    print(f"method: {method}\ntest: {test}\nconfiguration: {config}\n")
    print("Next:" if directory == Path(".") else f"Next, in {directory}:")
    print(f"  pytest {test.name}\n  fedlora run {config.name}")
