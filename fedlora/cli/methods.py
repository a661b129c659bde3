"""`fedlora strategies` and `fedlora cost`: what methods there are, and what they send."""

import json
import shutil
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer
from rich.console import Console
from rich.table import Table

from fedlora.cli import Settings, app, tree_of


@app.command("strategies")
def list_strategies() -> None:
    """The methods: what each trains, shares and keeps, and its paper."""
    from fedlora.strategy import stays
    from strategies import load, names

    table = Table("method", "adapter", "trains", "sends", "keeps local")
    table.add_column("paper", overflow="fold")
    for name in names():
        cls = load(name)
        parts = [", ".join(sorted(p)) or "–" for p in (cls.trained, cls.shared, stays(cls))]
        table.add_row(name, cls.adapter, *parts, cls.paper)
    Console().print(table)


@app.command()
def cost(
    arguments: Settings = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
    fits: Annotated[
        bool, typer.Option("--fits", help="Whether it fits this machine; exit code 1 if not.")
    ] = False,
) -> None:
    """Parameters and bytes per client and round, the memory that a client trains in, and what all
    rounds need of a machine, per method, from the model's config alone."""
    from fedlora import report, settings
    from fedlora.adapters import targets
    from fedlora.capacity import Needs, lacking, needs
    from fedlora.cost import cost as count
    from fedlora.cost import skeleton
    from fedlora.memory import memory
    from simulations.plan import workers
    from strategies import BUILTIN, load
    from strategies import settings as known

    tree = tree_of(arguments)
    names = [tree["strategy"]["name"]] if "name" in tree.get("strategy", {}) else list(BUILTIN)
    counted, needed = {}, {}
    whole: dict[str, Needs] = {}
    short: dict[str, list[str]] = {}
    for name in names:
        given = {**tree, "strategy": tree.get("strategy", {}) | {"name": name}}
        config, strategy = settings.resolve(given, load, ignore=known())
        found = counted[name] = count(config, strategy)
        model = skeleton(config.model)
        shapes = targets.targets(model, config.adapter)
        needed[name] = memory(config, model, found.parameters, found.trained_parameters)
        whole[name] = needs(config, strategy, found, needed[name], shapes)
        short[name] = lacking(whole[name], workers(config), *_free(config.run.dir)) if fits else []
    if as_json:
        told = {
            k: {**vars(c), "memory": vars(needed[k]), "run": vars(whole[k])}
            | ({"lacking": short[k]} if fits else {})
            for k, c in counted.items()
        }
        print(json.dumps(told, indent=2))
        raise typer.Exit(int(any(short.values())))
    report.show(_cost_table(counted, needed), Console())
    report.show(_needs_table(whole), Console())
    for name, found in counted.items():
        for note in found.notes:
            print(f"{name}: {note}")
    print(
        "memory: of one client in training, as base + adapter + passes; libraries and rows beside "
        "it. See fedlora/memory.py and, for a run with its clients and rounds, fedlora/capacity.py."
    )
    for name, lines in short.items() if fits else ():
        print(f"{name}: " + ("; ".join(lines) or "fits this machine"))
    if fits:
        print("compared: this machine's memory and disk; a GPU's own memory is not looked at")
    raise typer.Exit(int(any(short.values())))


def _free(folder: str) -> tuple[int, int]:
    """Bytes of memory, and on the disk that has the folder or will have it."""
    path = Path(folder).resolve()
    while not path.exists():
        path = path.parent
    return psutil.virtual_memory().available, shutil.disk_usage(path).free


def _needs_table(whole: dict[str, Any]) -> Table:
    from fedlora.report import amount

    table = Table("method", "largest message", "server's memory", "a client's", "disk")
    for name, n in whole.items():
        table.add_row(name, *map(amount, (n.message, n.server, n.client, n.disk)))
    return table


def _cost_table(counted: dict[str, Any], needed: dict[str, Any]) -> Table:
    from fedlora.report import amount

    table = Table("method", "parameters by part", "trained", "up", "first down", "later down")
    table.add_column("memory")
    for name, c in counted.items():
        parts = ", ".join(f"{part} {count:,}" for part, count in c.parameters.items())
        sizes = (c.bytes_up, c.bytes_down_first, c.bytes_down)
        m = needed[name]
        kinds = " + ".join(amount(x) for x in (m.base, m.adapter, m.passes))
        memory = f"{amount(m.together)} = {kinds}"
        table.add_row(name, parts, f"{c.trained_parameters:,}", *map(amount, sizes), memory)
    return table
