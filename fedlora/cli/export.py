"""`fedlora export`: a run's adapter or model, to use elsewhere."""

from pathlib import Path
from typing import Annotated

import typer

from fedlora.cli import app


@app.command()
def export(
    run: Annotated[str, typer.Argument(help="A run's name or directory.")],
    directory: Annotated[Path, typer.Argument(help="Where to write; must not exist.")],
    merge: Annotated[bool, typer.Option("--merge", help="The whole model, folded.")] = False,
    client: Annotated[
        str | None, typer.Option(metavar="ID", help="This client's own, personalised model.")
    ] = None,
) -> None:
    """Write a run's adapter as a plain LoRA checkpoint for PEFT, or the whole model."""
    from fedlora import export as exporting
    from fedlora.runs import RunDir
    from server.card import card
    from simulations import results

    opened = RunDir.open(run)
    resident, _ = results.loaded(opened, client)
    task, name = resident.task, resident.config.model.name
    text = card(opened, resident.strategy, client, merge, task.labels)
    tokenizer = exporting.unused(task)
    if merge:
        exporting.merge(resident.adapter, directory, tokenizer, text, task.pretrained.folders)
    else:
        exporting.save_peft(resident.adapter, directory, name, task.type, tokenizer, text)
    print(f"{'model' if merge else 'adapter'}: {directory}")
