"""What a run leaves: the global model, its adapter as plain PEFT, the curves."""

import shutil

from rich.console import Console

from fedlora import answers, pictures, report, settings
from fedlora.export import save_peft, unused
from fedlora.resident import Resident
from fedlora.runs import RunDir
from fedlora.tensors import Tensors
from server.card import card
from server.promise import promise
from server.score import load_global


def finish(resident: Resident, run: RunDir, state: Tensors) -> None:
    """Leave the final adapter, the curves and the closing table in the run directory."""
    load_global(resident, state, resident.config.run.rounds)
    folder = run.path / "adapter"
    shutil.rmtree(folder, ignore_errors=True)  # of a run whose last round was done again
    name, task = resident.config.model.name, resident.task
    text = card(run, resident.strategy, labels=task.labels)
    save_peft(resident.adapter, folder, name, task.type, unused(task), text)
    pictures.curves(report.load(run.metrics), run.path / "curves.png")
    with (run.path / "log.txt").open("a", encoding="utf-8") as log:
        tell(run, Console(file=log, width=100))


def tell(run: RunDir, console: Console) -> None:
    """The table by round, what a private run promises, and where things are."""
    rows, tree = report.load(run.metrics), settings.read(run.path / "config.toml", [])
    language = tree.get("model", {}).get("task") == "instruction"
    said = answers.read(run.answers)
    names = ("curves.png", "adapter", "metrics.jsonl", *(["answers.jsonl"] if said else []))
    places = [f"{name.partition('.')[0] + ':':9}{run.path / name}" for name in names]
    report.show(report.rounds_table(rows, language), console)
    if said:
        console.print(answers.side_by_side(said))
    for line in [*promise(rows, tree.get("privacy", {})), *places]:
        console.print(
            line, soft_wrap=True, markup=False, emoji=False, highlight=False
        )  # a path to be copied
