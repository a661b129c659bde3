"""`fedlora compare`: several methods side by side."""

from typing import Annotated

import typer
from rich.console import Console

from fedlora.cli import Settings, app, split, watch


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
    path, overrides = split(arguments)
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
            done = simulate(config, strategy, workers, watch(config.run.rounds))
            curves[method] = comparing.rounds(method, done)
            results.append(comparing.result(method, curves[method], config, strategy))
            report.comparison_csv(results, folder / "comparison.csv")
            pictures.comparison_picture(curves, folder / "comparison.png")
    report.show(report.comparison_table(results), console)
    print(f"table: {folder / 'comparison.csv'}\npicture: {folder / 'comparison.png'}")
