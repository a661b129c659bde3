"""The page: its charts and tables, and the template that lays them out."""

from collections.abc import Collection, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from fedlora import __version__, files
from fedlora.errors import UserError
from fedlora.page import answers, clients, facts, panels
from fedlora.page.collect import Run
from fedlora.page.series import Series, group
from fedlora.pictures import COLOURS
from fedlora.untrusted import block

TEMPLATES = Path(__file__).parent / "templates"


def page(runs: Sequence[Run], title: str) -> str:
    """One HTML document that refers to nothing outside itself. Raises UserError where no run has
    finished a round."""
    begun = [run for run in runs if run.last >= 0]
    if not begun:
        names = ", ".join(str(run.path) for run in runs)
        raise UserError(f"no round has finished yet in {names}: wait for the first, or resume it")
    series = group(begun)
    # For every text: names of clients and what a model answers may hold HTML, or turn it around.
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        finalize=_readable,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        title=title,
        version=__version__,
        colours=COLOURS,
        seeds=any(len(s.runs) > 1 for s in series),
        baselines=any(s.baseline for s in series),
        waiting=[run.name for run in runs if run.last < 0],
        overview=_overview(series, begun),
        results=facts.results(series),
        charts=panels.of(series),
        clients=clients.of(series),
        questions=answers.of(series),
        differences=facts.differences(series),
        common=facts.common(begun),
        runs=facts.runs(series),
        troubles=[(run, found) for run in begun if (found := facts.troubles(run))],
        environments=facts.environments(begun),
    )


def _readable(value: object) -> object:
    """A text without what could turn its neighbours around. The page's own HTML is as it is."""
    return block(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _overview(series: Sequence[Series], runs: Sequence[Run]) -> dict[str, str]:
    told = {
        len({row["client"] for row in run.clients})
        for run in runs
        if run.clients and not run.config["data.pooled"]
    }
    methods = dict.fromkeys(s.runs[0].method for s in series)
    seen = {
        _many("Method", methods): ", ".join(methods),
        "Model": facts.setting(runs, "model.name"),
        "Data": facts.setting(runs, "data.name"),
        "Clients": ", ".join(str(n) for n in sorted(told)),
        "Rounds": ", ".join(str(n) for n in sorted({s.last for s in series})),
        _many("Seed", {run.config["run.seed"] for run in runs}): facts.setting(runs, "run.seed"),
    }
    private = any("epsilon" in row for run in runs for row in run.rounds)
    if private:
        seen["Privacy"] = facts.setting(runs, "privacy.mode")
    return {name: text for name, text in seen.items() if text}


def _many(noun: str, things: Collection[object]) -> str:
    return noun if len(things) == 1 else f"{noun}s"


def write(html: str, path: Path) -> None:
    """The page as a file, whole or not at all. Raises UserError where it cannot be one."""
    if path.is_dir() or not path.parent.is_dir():
        raise UserError(f"{path} cannot be written: give --output a file in a folder that exists")
    files.write(path, html)
