"""One contender of a comparison: what it is run with, and what is said of it."""

import math
from collections.abc import Collection, Mapping
from typing import Any

import strategies
from fedlora import report, settings
from fedlora.comparison import Result
from fedlora.config import Config
from fedlora.privacy import plan
from fedlora.runs import Row, RunDir
from fedlora.settings import Tree
from fedlora.strategy import Strategy

BASELINES = ("centralised", "local")


def resolved(
    method: str, tree: Mapping[str, Any], seed: int, folder: str, rows: Mapping[str, int]
) -> tuple[Config, Strategy]:
    """One contender's configuration: its own defaults, then what was given for all and for it.

    Centralised is FedIT with one client that has everyone's rows and takes everyone's steps; local
    is the method that shares nothing.

    Args:
        rows: training rows by client with this seed, every client there is.

    Raises UserError where a setting is wrong, or a client cannot train privately as it says.
    """
    here = {"dir": folder, "name": directory(method, seed), "seed": seed}
    given = settings.merged(named(tree, method), {"run": here})
    config, made = _resolved(given)
    if method != "centralised":
        plan.check_clients(config, rows)
        return config, made
    steps = config.train.steps
    everyones = steps and steps * config.run.sampled(len(rows))
    pooled: Tree = {
        "run": {"clients_per_round": 1},
        "data": {"pooled": True},
        "train": {"steps": everyones},
    }
    config, made = _resolved(settings.merged(given, pooled))
    plan.check_clients(config, {"pooled": sum(rows.values())})
    return config, made


def shared(tree: Tree, method: str) -> Config:
    """What the contenders have in common: where they go, the data, the workers. `method` is one of
    them, as a setting may suit only some. Raises UserError."""
    return _resolved(named(tree, method))[0]


def named(tree: Mapping[str, Any], method: str) -> Tree:
    """The settings with that method's name in them."""
    name = "fedit" if method == "centralised" else method
    return settings.merged(tree, {"strategy": {"name": name}})


def _resolved(given: Tree) -> tuple[Config, Strategy]:
    return settings.resolve(given, strategies.load, ignore=strategies.settings())


def directory(method: str, seed: int) -> str:
    """The name of a run's directory in the comparison's folder."""
    return f"{method.replace(':', '.')}-seed{seed}"


def rounds(method: str, run: RunDir) -> list[Row]:
    """A run's rounds. A baseline sends nothing: only its simulation has a server and clients."""
    silent = {"bytes_up": 0, "bytes_down": 0} if method in BASELINES else {}
    return [{**r, **silent} for r in report.rounds_of(report.load(run.metrics))]


def result(method: str, rows: list[Row], config: Config, trained_parameters: int) -> Result:
    """The last round's scores and the whole run's cost."""
    loss, epsilon = rows[-1].get("test_loss"), rows[-1].get("epsilon")
    return Result(
        method=method,
        seed=config.run.seed,
        score=rows[-1].get("score"),
        personalised=rows[-1].get("personalised"),
        test_loss=loss,
        perplexity=report.perplexity(loss) if config.model.task == "instruction" else None,
        trained_parameters=trained_parameters,
        bytes_up=_total(rows, "bytes_up"),
        bytes_down=_total(rows, "bytes_down"),
        seconds=_total(rows, "seconds"),
        epsilon=math.inf if report.private(rows) and epsilon is None else epsilon,
    )


def _total(rows: list[Row], key: str) -> Any:
    """Over all rounds; None where it is withheld."""
    return sum(r[key] for r in rows) if all(key in r for r in rows) else None


def split(overrides: Tree, methods: Collection[str]) -> tuple[Tree, dict[str, Tree]]:
    """`fedsb.adapter.rank=32` is for fedsb alone, `adapter.rank=16` for all, and the first wins."""
    own = {k: v for k, v in overrides.items() if k in methods}
    return {k: v for k, v in overrides.items() if k not in methods}, own
