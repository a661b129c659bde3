"""What a run leaves: the global model, its adapter as plain PEFT, the curves."""

import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from fedlora import pictures, report, settings
from fedlora.export import save_peft
from fedlora.guard import called, checked
from fedlora.resident import Resident
from fedlora.runs import RunDir
from fedlora.strategy import Client, Round
from fedlora.tensors import Tensors


def load_global(resident: Resident, state: Tensors, number: int) -> None:
    """The global model after a round, into the resident adapter: what a client of full rank would
    be sent to evaluate."""
    scaling, run = resident.adapter.scaling, resident.config.run
    client = Client("server", scaling.rank, scaling.at(scaling.rank))
    round = Round(number, "evaluate", run.seed, run.wire_dtype)
    view = called(resident.strategy, "broadcast", state, client, round)
    resident.load(checked(resident.strategy, "broadcast", view), client.scale)


def finish(resident: Resident, run: RunDir, state: Tensors) -> None:
    """Leave the final adapter, the curves and the closing table in the run directory."""
    load_global(resident, state, resident.config.run.rounds)
    folder = run.path / "adapter"
    shutil.rmtree(folder, ignore_errors=True)  # of a run whose last round was done again
    name, task = resident.config.model.name, resident.task
    save_peft(resident.adapter, folder, name, task.type, task.tokenizer)
    pictures.curves(report.load(run.metrics), run.path / "curves.png")
    with (run.path / "log.txt").open("a", encoding="utf-8") as log:
        tell(run, Console(file=log, width=100))


def tell(run: RunDir, console: Console) -> None:
    """The table by round, what a private run promises, and where things are."""
    rows = report.load(run.metrics)
    privacy = settings.read(run.path / "config.toml", []).get("privacy", {})
    names = ("curves.png", "adapter", "metrics.jsonl")
    places = [f"{name.partition('.')[0] + ':':9}{run.path / name}" for name in names]
    report.show(report.rounds_table(rows), console)
    for line in [*_promise(rows, privacy), *places]:
        console.print(
            line, soft_wrap=True, markup=False, emoji=False, highlight=False
        )  # a path to be copied


def _promise(rows: Sequence[report.Row], privacy: Mapping[str, Any]) -> list[str]:
    """What was spent, and what that protects; nothing where the run is not private. `privacy` is
    the configuration's section as TOML has it."""
    rounds = report.rounds_of(rows)
    if not report.private(rounds):
        return []
    epsilon, delta = (rounds[-1].get(key) for key in ("epsilon", "delta"))
    bound = "ε is unknown or infinite" if epsilon is None else f"ε ≤ {report.spent(epsilon)}"
    at = "" if delta is None else f" at δ = {delta:.1e}"
    by = f"{str(privacy['accountant']).upper()} accountant"
    if privacy["mode"] == "central":
        protects = "user-level, noise at the server"
    else:
        protects = "example-level"
        spenders = {row["client"] for row in rows if row["kind"] == "client" and "epsilon" in row}
        by = f"largest of {len(spenders)} client{'s' * (len(spenders) != 1)}, {by}"
    lines = [f"privacy: {bound}{at} ({by}), {protects}"]
    seed = privacy["insecure_seed"]
    if seed != "null":
        lines.append(
            f"warning: privacy.insecure_seed = {seed} makes the noise predictable: "
            "nothing here is private"
        )
    return lines
