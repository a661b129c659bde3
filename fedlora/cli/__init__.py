"""The command line. It alone of the library looks up, at the simulation and the methods."""

import json
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fedlora.errors import Stopped, UserError

app = typer.Typer(
    help="Federated LoRA fine-tuning of language models, on Flower.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Settings = Annotated[
    list[str] | None,
    typer.Argument(metavar="[CONFIG.toml] [section.key=value …]", show_default=False),
]


def main() -> None:
    """Entry point: a person's mistake is one message and exit code 2."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries, each said twice
    try:
        app()
    except UserError as e:
        Console(stderr=True).print(
            f"error: {e}", markup=False, emoji=False, highlight=False, soft_wrap=True
        )
        sys.exit(2)
    except Stopped as e:
        print(e, file=sys.stderr)
        sys.exit(130)


@app.command()
def run(
    arguments: Settings = None,
    resume: Annotated[
        str | None, typer.Option(metavar="RUN", help="Continue this run from its last round.")
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Where the time went: a table, and profile.json.")
    ] = False,
) -> None:
    """Federate a model over data on this machine. Without a configuration: MiniLM on the bundled
    sentiment data, one client a domain, FedEx-LoRA."""
    from fedlora import profile as profiling

    recorded = profiling.Profile() if profile else None
    with profiling.recording(recorded):
        done = _federated(arguments, resume)
    if recorded:
        _tell_profile(recorded, done.path)


def _federated(arguments: list[str] | None, resume: str | None) -> Any:
    """The directory of a run that was made, and told of."""
    from fedlora import profile
    from simulations import nursery

    nursery.warm()

    with profile.span("load"):
        from fedlora import settings
        from server.result import tell
        from simulations.run import pool, simulate
        from strategies import load

    tree = tree_of(arguments)
    previous = None
    if resume is not None:
        previous, tree = resumed(resume, tree)
    config, strategy = settings.resolve(tree, load)
    with pool(config) as workers:
        done = simulate(config, strategy, workers, _watch(config.run.rounds), previous)
    tell(done, Console())
    return done


def _tell_profile(recorded: Any, folder: Path) -> None:
    from fedlora import profile, report

    recorded.end()
    recorded.write(folder / "profile.json")
    report.show(profile.table(recorded), Console())
    print(f"profile: {folder / 'profile.json'}")


@app.command()
def compare(
    arguments: Settings = None,
    names: Annotated[
        str, typer.Option("--strategies", help="The methods, with commas between.")
    ] = "fedit,ffa,fedex,fedsa,fedsb,fslora",
) -> None:
    """Run several methods from the same seed, data and rows, beside two baselines. A setting for
    one method alone has its name in front: fedsb.adapter.rank=32."""
    from fedlora import data, pictures, report, settings
    from fedlora.runs import comparison_dir
    from simulations import compare as comparing
    from simulations.run import pool, simulate
    from strategies import load
    from strategies import settings as known

    methods = (*dict.fromkeys(m.strip() for m in names.split(",") if m.strip()),)
    methods = (*methods, *(b for b in comparing.BASELINES if b not in methods))
    path, overrides = _split(arguments)
    trees = comparing.split(settings.read(path, []), settings.parse(overrides), methods)
    first, _ = settings.resolve(trees["local"], load, ignore=known())
    folder = comparison_dir(first)
    rows = data.load(first.data, first.run.seed).examples
    contenders = {
        m: comparing.resolved(m, trees[m], str(folder), rows) for m in methods
    }  # every mistake is found before anything trains
    folder.mkdir(parents=True)

    results, curves = [], {}
    console = Console()
    with pool(first) as workers:
        for method, (config, strategy) in contenders.items():
            print(f"{method}: {config.run.rounds} rounds", flush=True)
            done = simulate(config, strategy, workers, _watch(config.run.rounds))
            curves[method] = comparing.rounds(method, done)
            results.append(comparing.result(method, curves[method], config, strategy))
            report.comparison_csv(results, folder / "comparison.csv")
            pictures.comparison_picture(curves, folder / "comparison.png")
    report.show(report.comparison_table(results), console)
    print(f"table: {folder / 'comparison.csv'}\npicture: {folder / 'comparison.png'}")


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
    """Parameters and bytes per client and round, per method, from the model's config alone."""
    from fedlora import report, settings
    from fedlora.cost import cost as count
    from strategies import BUILTIN, load
    from strategies import settings as known

    tree = tree_of(arguments)
    names = [tree["strategy"]["name"]] if "name" in tree.get("strategy", {}) else list(BUILTIN)
    counted = {}
    for name in names:
        given = {**tree, "strategy": tree.get("strategy", {}) | {"name": name}}
        counted[name] = count(*settings.resolve(given, load, ignore=known()))
    if as_json:
        print(json.dumps({k: vars(v) for k, v in counted.items()}, indent=2))
        return
    report.show(_cost_table(counted), Console())


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
    from server.result import load_global
    from simulations import results

    opened = RunDir.open(run)
    checkpoint = results.latest(opened)
    resident = results.resident_of(opened)
    if client is None:
        load_global(resident, checkpoint.state, checkpoint.round)
    else:
        results.load_client(resident, opened, checkpoint, client)
    task, name = resident.task, resident.config.model.name
    if merge:
        exporting.merge(resident.adapter, directory, task.tokenizer)
    else:
        exporting.save_peft(resident.adapter, directory, name, task.type, task.tokenizer)
    print(f"{'model' if merge else 'adapter'}: {directory}")


def _split(arguments: list[str] | None) -> tuple[Path | None, list[str]]:
    """The configuration file, if the first argument is one, and the settings."""
    given = list(arguments or [])
    path = Path(given.pop(0)) if given and "=" not in given[0] else None
    return path, given


def tree_of(arguments: list[str] | None) -> dict[str, Any]:
    from fedlora import settings

    return settings.read(*_split(arguments))


def resumed(name: str, tree: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A run's directory, and its configuration with what may be changed."""
    from fedlora import settings
    from fedlora.runs import RunDir

    given = tree.get("run", {})
    if set(tree) - {"run"} or set(given) - {"rounds", "dir"}:
        raise UserError("a resumed run keeps its configuration; only run.rounds may be given")
    run = RunDir.open(name, given.get("dir", "runs"))
    saved = settings.read(run.path / "config.toml", [])
    rounds = {"run": {"rounds": given["rounds"]}} if "rounds" in given else {}
    return run, settings.merged(saved, rounds)


def _watch(rounds: int) -> Any:
    from fedlora.progress import Progress

    return lambda log: Progress(rounds, Console(), log)


def _cost_table(counted: dict[str, Any]) -> Table:
    from fedlora.report import amount

    table = Table("method", "parameters by part", "trained", "up", "first down", "later down")
    for name, c in counted.items():
        parts = ", ".join(f"{part} {count:,}" for part, count in c.parameters.items())
        sizes = (c.bytes_up, c.bytes_down_first, c.bytes_down)
        table.add_row(name, parts, f"{c.trained_parameters:,}", *(amount(x) for x in sizes))
    return table


from fedlora.cli import node as _node  # noqa: E402, F401  (these add their commands to the app)
from fedlora.cli import submit as _submit  # noqa: E402, F401
