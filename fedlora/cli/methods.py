"""`fedlora strategies` and `fedlora cost`: what methods there are, and what they send."""

import json
from typing import Annotated, Any

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
) -> None:
    """Parameters and bytes per client and round, and the memory that a client trains in, per
    method, from the model's config alone."""
    from fedlora import report, settings
    from fedlora.cost import cost as count
    from fedlora.cost import skeleton
    from fedlora.memory import memory
    from strategies import BUILTIN, load
    from strategies import settings as known

    tree = tree_of(arguments)
    names = [tree["strategy"]["name"]] if "name" in tree.get("strategy", {}) else list(BUILTIN)
    counted, needed = {}, {}
    for name in names:
        given = {**tree, "strategy": tree.get("strategy", {}) | {"name": name}}
        config, strategy = settings.resolve(given, load, ignore=known())
        found = counted[name] = count(config, strategy)
        model = skeleton(config.model)
        needed[name] = memory(config, model, found.parameters, found.trained_parameters)
    if as_json:
        told = {k: {**vars(c), "memory": vars(needed[k])} for k, c in counted.items()}
        print(json.dumps(told, indent=2))
        return
    report.show(_cost_table(counted, needed), Console())
    for name, found in counted.items():
        for note in found.notes:
            print(f"{name}: {note}")
    print(
        "memory: of one client in training, as base + adapter + passes; libraries and rows beside "
        "it. See fedlora/memory.py."
    )


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
