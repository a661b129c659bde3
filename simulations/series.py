"""A comparison in its folder: several methods, once a seed each, beside two baselines.

    comparison.json            what was asked for; origin.json, split.json: what it began with
    <method>-seed<k>/          a run's directory, with result.json once the run is over
    comparison.csv, runs.csv, comparison.md, comparison.tex, comparison.png

The methods of a seed share its data, division and start. Runs go seed by seed, so that what is
there early on is a whole comparison of fewer seeds; one that fails keeps no other from running. A
run without its result is continued from its own configuration and last whole round, to the same
bits.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ValidationError

import strategies
from fedlora import data, files, pictures, settings, tables, tasks
from fedlora.comparison import Result
from fedlora.config import Config
from fedlora.cost import trained_parameters
from fedlora.errors import Failed, UserError
from fedlora.report import Row
from fedlora.resident import Resident
from fedlora.runs import RunDir, comparison_dir, held
from fedlora.settings import Tree
from fedlora.strategy import Strategy
from server import origin
from simulations import compare
from simulations.pool import Pool
from simulations.run import Watch, pool, simulate
from strategies import load

Watched = Callable[[Config], Watch]  # of a run that is so configured
DEFAULT = ("fedit", "ffa", "fedex", "fedsa", "fedsb", "fslora")


class Plan(BaseModel, frozen=True, extra="forbid"):
    """What is compared; the first method is the one that the others are tested against."""

    methods: list[str]
    seeds: list[int]
    shared: Tree  # settings for all
    own: dict[str, Tree]  # {method: settings for it alone}

    def tree(self, method: str) -> Tree:
        """A method's settings."""
        return settings.merged(self.shared, self.own.get(method, {}))


@dataclass(frozen=True)
class Contender:
    """A run that is still to be made, or to be finished."""

    method: str
    config: Config
    strategy: Strategy
    trained_parameters: int
    run: RunDir | None


def planned(
    tree: Tree, overrides: Tree, methods: str | None, seeds: str | None, baselines: bool
) -> Plan:
    """The plan for a person's words. Raises UserError where they make none.

    Args:
        methods, seeds: with commas between; None stands for DEFAULT and for run.seed.
    """
    names = [*dict.fromkeys(_words(methods))] if methods is not None else [*DEFAULT]
    if baselines:
        names += [b for b in compare.BASELINES if b not in names]
    shared, own = compare.split(overrides, names)
    shared = settings.merged(tree, shared)
    if not names:
        raise UserError("there is no method to compare: name some, as in --strategies fedit,ffa")
    for method, given in own.items():
        if kept := {"seed", "name", "dir"}.intersection(given.get("run", {})):
            raise UserError(
                f"{method}.run.{min(kept)}: all methods of a comparison have the same; "
                "give --seeds, run.name and run.dir for all"
            )
    numbers = [compare.shared(shared, names[0]).run.seed] if seeds is None else seeds_of(seeds)
    return Plan(methods=names, seeds=numbers, shared=shared, own=own)


def seeds_of(text: str) -> list[int]:
    """`0,1,2` as numbers. Raises UserError where one is none, or comes twice."""
    words = _words(text)
    if not words or not all(word.isdecimal() for word in words):
        raise UserError(f"--seeds {text}: write whole numbers with commas between, as in 0,1,2")
    numbers = [int(word) for word in words]
    if len(set(numbers)) < len(numbers):
        raise UserError(f"--seeds {text}: the same seed twice gives the same run twice")
    return numbers


def place(plan: Plan) -> Path:
    """Where a new comparison goes. Raises UserError where that exists."""
    return comparison_dir(compare.shared(plan.shared, plan.methods[0]))


def create(folder: Path, plan: Plan) -> None:
    """The folder, with the plan in it, what it begins with, and nothing else."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        files.write(aside / "comparison.json", plan.model_dump_json(indent=1))
        origin.begin(aside, _common(plan))
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def same(folder: Path, plan: Plan) -> list[str]:
    """Whether base and rows are those that the comparison began with, as its runs are to have the
    same; what is not known of that. Raises UserError where they are not."""
    resident = _common(plan)
    return origin.check(folder, resident, resident.config, "or start a new comparison")


def _common(plan: Plan) -> Resident:
    """What the runs have in common, with the first seed: rows are divided anew by each."""
    first = compare.named(plan.shared, plan.methods[0])
    tree = settings.merged(first, {"run": {"seed": plan.seeds[0]}})
    return Resident(*settings.resolve(tree, load, ignore=strategies.settings()))


def opened(name: str, root: str = "runs") -> tuple[Path, Plan]:
    """A comparison's folder, by path or by name inside `root`, and its plan. Raises UserError."""
    for folder in (Path(name), Path(root) / name):
        path = folder / "comparison.json"
        if path.is_file():
            try:
                return folder, Plan.model_validate_json(path.read_text("utf-8"))
            except (ValidationError, UnicodeDecodeError) as e:
                raise UserError(f"{path} is damaged: {e}") from None
    raise UserError(f"there is no comparison '{name}' in {root}/: a folder with comparison.json")


def contenders(plan: Plan, folder: Path) -> list[Contender]:
    """The runs that are not over. Raises UserError for what is wrong with any of them: its
    settings, the data's clients with each seed, the model and what of it is adapted."""
    counted: dict[str, int] = {}
    found = []
    for seed in plan.seeds:
        left = [m for m in plan.methods if not _over(folder, m, seed)]
        if not left:
            continue
        rows = _rows(plan, seed)
        for method in left:
            run, config, strategy = _begun(folder, method, seed) or (
                None,
                *compare.resolved(method, plan.tree(method), seed, str(folder), rows),
            )
            if method not in counted:  # a seed changes no shape
                counted[method] = trained_parameters(config, strategy)
            found.append(Contender(method, config, strategy, counted[method], run))
    return found


def carry_out(
    folder: Path, plan: Plan, left: Sequence[Contender], watch: Watched, say: Callable[[str], None]
) -> list[str]:
    """Run what is left; which runs came to no result, and why. Raises UserError where another
    process is at it."""
    failed: list[str] = []
    with held(folder, f"{folder} is being run by another process: wait until it ends, or stop it"):
        for path in folder.glob(".*-seed*/"):  # of a process that died while it made a run's
            shutil.rmtree(path)
        if not left:
            write(folder, plan)  # the last of it may have been cut short
            return failed
        with pool(left[0].config) as workers:
            for one in left:
                name = f"{one.method}, seed {one.config.run.seed}"
                say(f"{name}: {one.config.run.rounds} rounds")
                try:
                    _run(one, workers, watch)
                except (Failed, UserError) as e:
                    failed.append(f"no result of {name}: {e}")
                    say(failed[-1])
                write(folder, plan, failed)
    return failed


def _run(one: Contender, workers: Pool, watch: Watched) -> None:
    """To its end, with result.json."""
    run = simulate(one.config, one.strategy, workers, watch(one.config), one.run)
    rows = compare.rounds(one.method, run)
    found = compare.result(one.method, rows, one.config, one.trained_parameters)
    files.write(run.path / "result.json", found.dump())


def results(folder: Path, plan: Plan) -> list[Result]:
    """Of the runs that are over: method by method, as the plan has them, and seed by seed."""
    paths = [
        folder / compare.directory(method, seed) / "result.json"
        for method in plan.methods
        for seed in plan.seeds
    ]
    return [Result.read(p.read_text("utf-8")) for p in paths if p.is_file()]


def write(folder: Path, plan: Plan, failed: Sequence[str] = ()) -> None:
    """The tables and the picture of the runs that are over, if any is; and what is said of those
    that failed."""
    if not (found := results(folder, plan)):
        return
    tables.write(found, folder, failed)
    curves: dict[str, list[Sequence[Row]]] = {}
    for one in found:
        run = RunDir(folder / compare.directory(one.method, one.seed))
        curves.setdefault(one.method, []).append(compare.rounds(one.method, run))
    pictures.comparison_picture(curves, folder / "comparison.png")


def _rows(plan: Plan, seed: int) -> dict[str, int]:
    """Training rows by client; of the data themselves nothing stays in memory."""
    config = compare.shared(plan.shared, plan.methods[0])
    return data.load(config.data, seed, tasks.load(config.model.task).kind).examples


def _over(folder: Path, method: str, seed: int) -> bool:
    return (folder / compare.directory(method, seed) / "result.json").is_file()


def _begun(folder: Path, method: str, seed: int) -> tuple[RunDir, Config, Strategy] | None:
    """A run that was stopped, with the configuration that it was begun with: what was chosen for it
    then, such as who shares passes, is in there."""
    path = folder / compare.directory(method, seed)
    if not path.exists():
        return None
    return RunDir(path), *settings.resolve(settings.read(path / "config.toml", []), load)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]
