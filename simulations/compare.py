"""Several methods from the same seed, data and rows, beside two baselines."""

from collections.abc import Mapping
from typing import Any

import strategies
from fedlora import report, settings
from fedlora.config import Config
from fedlora.cost import cost
from fedlora.privacy import plan
from fedlora.runs import Row, RunDir
from fedlora.settings import Tree
from fedlora.strategy import Strategy

BASELINES = ("centralised", "local")


def resolved(
    method: str, tree: Mapping[str, Any], folder: str, rows: Mapping[str, int]
) -> tuple[Config, Strategy]:
    """One contender's configuration: its own defaults, then what was given for all and for it.

    Centralised is FedIT with one client that has everyone's rows and takes everyone's steps; local
    is the method that shares nothing.

    Args:
        rows: training rows by client, every client there is.

    Raises UserError where a setting is wrong, or a client cannot train privately as it says.
    """
    pooled = method == "centralised"
    strategy = tree.get("strategy", {}) | {"name": "fedit" if pooled else method}
    run = tree.get("run", {}) | {"dir": folder, "name": method.replace(":", ".")}
    given = {**tree, "strategy": strategy, "run": run}
    ignore = strategies.settings()
    config, made = settings.resolve(given, strategies.load, ignore=ignore)
    if not pooled:
        plan.check_clients(config, rows)
        return config, made
    steps = config.train.steps
    sampled = config.run.sampled(len(rows))
    given["run"] = run | {"clients_per_round": 1}
    given["data"] = tree.get("data", {}) | {"pooled": True}
    given["train"] = tree.get("train", {}) | {"steps": steps and steps * sampled}
    config, made = settings.resolve(given, strategies.load, ignore=ignore)
    plan.check_clients(config, {"pooled": sum(rows.values())})
    return config, made


def rounds(method: str, run: RunDir) -> list[Row]:
    """A run's rounds. A baseline sends nothing: only its simulation has a server and clients."""
    silent = {"bytes_up": 0, "bytes_down": 0} if method in BASELINES else {}
    return [{**r, **silent} for r in report.rounds_of(report.load(run.metrics))]


def result(method: str, rows: list[Row], config: Config, strategy: Strategy) -> report.Result:
    """The last round's scores and the whole run's cost."""
    return report.Result(
        method=method,
        score=rows[-1]["score"],
        personalised=rows[-1]["personalised"],
        trained_parameters=cost(config, strategy).trained_parameters,
        bytes_up=sum(r["bytes_up"] for r in rows),
        bytes_down=sum(r["bytes_down"] for r in rows),
        seconds=sum(r["seconds"] for r in rows),
        epsilon=rows[-1].get("epsilon"),
    )


def split(tree: Tree, overrides: Tree, methods: tuple[str, ...]) -> dict[str, Tree]:
    """`fedsb.adapter.rank=32` is for fedsb alone, `adapter.rank=16` for all, and the first wins."""
    shared = {k: v for k, v in overrides.items() if k not in methods}
    own = {k: v for k, v in overrides.items() if k in methods}
    merged = settings.merged(tree, shared)
    return {m: settings.merged(merged, own.get(m, {})) for m in methods}
