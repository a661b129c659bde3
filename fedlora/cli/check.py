"""`fedlora check`: what a run would see and need, before anything trains."""

from collections.abc import Callable, Iterator
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from fedlora.cli import Settings, app, tree_of
from fedlora.errors import UserError
from fedlora.untrusted import block

Part = Callable[[Any], Iterator[Any]]
AS_IT_IS: dict[str, Any] = {"markup": False, "emoji": False, "highlight": False}


@app.command()
def check(arguments: Settings = None) -> None:
    """Look at a run before it trains: columns, labels by client, rows as the model reads them with
    what is learnt in colour, lengths, the model, memory, bytes, and the time of a step. Takes what
    `fedlora run` takes, and writes nothing. The exit code is 2 where something is wrong."""
    from fedlora import settings
    from fedlora.resident import Resident
    from strategies import load

    config, strategy = settings.resolve(tree_of(arguments), load)
    wrong = looked_at(Resident(config, strategy), Console(), PARTS)
    if wrong:
        raise typer.Exit(2)


def looked_at(resident: Any, console: Console, parts: dict[str, Part]) -> list[str]:
    """Show each part under its heading; what is wrong with them. A part that fails keeps no other
    from being shown."""
    from fedlora.report import show

    wrong: list[str] = []
    for heading, part in parts.items():
        console.print(f"\n{heading}", style="bold")
        try:
            for shown in part(resident):
                if isinstance(shown, Table):
                    show(shown, console)
                else:
                    console.print(shown, soft_wrap=True, **AS_IT_IS)
        except UserError as e:
            if (said := str(e)) in wrong:
                said = "not looked at, as this needs what is wrong above"
            else:
                wrong.append(said)
                said = f"error: {said}"
            console.print(block(said), style="red", soft_wrap=True, **AS_IT_IS)
    console.print()
    return wrong


def data(resident: Any, examples: bool = True) -> Iterator[Any]:
    """The columns; the labels by client."""
    from fedlora import tasks
    from fedlora.check import data as look
    from fedlora.check import draw

    config = resident.config
    where, table = look.table(resident)
    yield f"{where}: {len(table):,} rows"
    own = {"partition": "split"} if resident.node.data else {}  # a node's rows are one client's
    settings = config.data.model_copy(update=own)
    found = look.columns(table, settings, tasks.load(config.model.task).kind)
    yield draw.columns(found, examples)
    federation = resident.federation
    yield draw.owners(look.owners(federation))
    if not resident.node.data:
        yield draw.served(federation, look.commonest(federation))


def rows(resident: Any) -> Iterator[Any]:
    """Three rows of the first client."""
    from fedlora.check import draw, tokens

    federation = resident.federation
    own = federation.train(federation.clients[0]) if federation.clients else federation.test
    found = tokens.shown(resident.task, own.select(range(min(len(own), draw.ROWS))))
    yield from (draw.row(number, row) for number, row in enumerate(found, start=1))


def lengths(resident: Any) -> Iterator[Any]:
    """Of all rows that clients own."""
    from fedlora.check import draw, tokens

    yield draw.lengths(tokens.lengths(resident), resident.task.max_length)
    _ = resident.verified


def model(resident: Any) -> Iterator[Any]:
    """The model, and the adapter on it."""
    from fedlora.check import draw
    from fedlora.check import model as look

    yield draw.facts(look.facts(resident))


def needs(resident: Any) -> Iterator[Any]:
    """Bytes and memory."""
    from fedlora.check import draw
    from fedlora.check import model as look

    yield draw.bill(look.bill(resident))


def step(resident: Any) -> Iterator[Any]:
    """One step of the first client, on this machine."""
    import torch

    from clients import trial
    from fedlora.check import draw

    torch.set_num_threads(resident.config.simulation.threads)
    client = resident.federation.clients[0]
    yield draw.step(trial.step(resident, client), resident, client)


def blind(resident: Any) -> Iterator[Any]:
    """`data` without a word of a row."""
    return data(resident, examples=False)


def odd(resident: Any) -> Iterator[Any]:
    """What a run notes as it begins."""
    notes = resident.notes
    yield from (f"- {note}" for note in notes) if notes else ["nothing"]


READ: dict[str, Part] = {"Rows as the model reads them": rows}
NEEDS: dict[str, Part] = {"Lengths": lengths, "Model": model, "Bytes and memory": needs}
ODD: dict[str, Part] = {"What looks odd": odd}
PARTS = {"Data": data, **READ, **NEEDS, "A step": step, **ODD}
NODE = {"Data": blind, **NEEDS, **ODD}  # a step is made there already
