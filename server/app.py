"""The ServerApp: the same coordinator under Flower's own engines."""

import os
import re
import shutil
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from rich.console import Console

import strategies
from fedlora import files, settings
from fedlora.config import Config
from fedlora.errors import Failed, UserError
from fedlora.progress import Progress
from fedlora.resident import Resident
from fedlora.runs import RunDir
from fedlora.strategy import Strategy
from fedlora.untrusted import LONG, plain
from server import origin
from server.agreement import check_names
from server.events import Events
from server.loop import Coordinator
from server.result import finish, tell

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """The configuration is Flower's run-config. `submit.run` in it, the run directory's name, says
    that `fedlora submit` started this and listens."""
    try:
        _run(grid, dict(context.run_config))
        return
    except Exception as e:
        # Flower prints what is raised here, and all that led to it, in as many lines as it has.
        # What an error quotes may be a node's: its place and one line are what is left of it.
        kind, said, place = type(e), _said(e), e.__traceback__
    raise (UserError if issubclass(kind, UserError) else Failed)(said).with_traceback(place)


def _run(grid: Grid, flat: dict[str, Any]) -> None:
    name, resume = flat.pop("submit.run", None), flat.pop("submit.resume", False)
    if name is None:
        _printed(grid, flat)
    else:
        _submitted(grid, flat, str(name), bool(resume))


def _printed(grid: Grid, flat: dict[str, Any]) -> None:
    """`flwr run .`: what is printed goes to Flower's log, for people."""
    config, strategy = _resolved(settings.from_flat(flat))
    resident = Resident(config, strategy)
    check_names(resident.federation.clients)
    run = RunDir.create(config)
    origin.begin(run.path, resident)
    dated = not config.privacy.central
    with Progress(config.run.rounds, Console(), run.path / "log.txt", dated) as observer:
        nodes, clients = len(list(grid.get_node_ids())), len(resident.federation.clients)
        if nodes < clients:
            observer.note(
                f"the data makes {clients} clients, but only {nodes} nodes are here: the rows of "
                "the rest are not used (--num-supernodes of flwr federation simulation-config)"
            )
        coordinator = Coordinator(grid, resident, run, observer)
        coordinator.serve()
    finish(resident, run, coordinator.state)
    tell(run, Console())


def _submitted(grid: Grid, flat: dict[str, Any], name: str, resume: bool) -> None:
    """`fedlora submit`: what happens is told as events, at last the run directory itself."""
    events, held, failure = Events(), None, None
    with ExitStack() as until_sent:
        try:
            config, strategy = _resolved(settings.from_flat(flat))
            run = _opened(config, name, resume)
            until_sent.enter_context(run.held())
            held = run
            resident = Resident(config, strategy)
            notes = origin.begun(run, resident)
            settings.write(config, run.path / "config.toml")  # there may be more rounds now
            _serve(grid, resident, run, events, notes)
        except Exception as e:
            events.error(_said(e))
            failure = e
        if held and (resume or held.rounds()):
            events.files(held.path)
        elif held:  # it failed before its first round, and leaves nothing
            shutil.rmtree(held.path)
        events.end()
    if failure:
        raise failure


def _said(error: Exception) -> str:
    """One line."""
    if isinstance(error, OSError):
        return plain(files.trouble(error), LONG)
    kind = "" if isinstance(error, UserError | Failed) else f"{type(error).__name__}: "
    return plain(f"{kind}{error}", LONG)


def _opened(config: Config, name: str, resume: bool) -> RunDir:
    """The run's directory on this machine, new or as it was left; in $FEDLORA_RUNS if that is set,
    else in run.dir. Raises UserError where it is there already, is not, or is of another run."""
    folder = Path(os.environ.get("FEDLORA_RUNS") or config.run.dir)
    if not re.fullmatch(r"[\w.-]+", name) or name in (".", ".."):
        raise UserError(f"'{name}' is no name for a run directory")
    if not resume:
        return RunDir.create(config, str(folder))
    run = RunDir.open(name, str(folder))
    saved, _ = _resolved(settings.read(run.path / "config.toml", []))
    differ = sorted(k for k, v in _fixed(config).items() if v != _fixed(saved).get(k))
    if differ:
        raise UserError(
            f"a resumed run keeps its configuration, but {', '.join(differ)} is not as when "
            f"{name} began: resume from the directory that the run was submitted from"
        )
    return run


def _fixed(config: Config) -> dict[str, Any]:
    """The settings that a resumed run may not change."""
    flat = settings.to_flat(config)
    return {k: v for k, v in flat.items() if k not in ("run.rounds", "run.dir", "run.name")}


def _serve(
    grid: Grid, resident: Resident, run: RunDir, events: Events, notes: Iterable[str]
) -> None:
    config, log = resident.config, run.path / "log.txt"
    dated = not config.privacy.central
    with Progress(config.run.rounds, Console(quiet=True), log, dated) as events.log:
        for note in notes:
            events.note(note)
        coordinator = Coordinator(grid, resident, run, events)
        coordinator.serve()
    finish(resident, run, coordinator.state)


def _resolved(tree: settings.Tree) -> tuple[Config, Strategy]:
    return settings.resolve(tree, strategies.load, ignore=strategies.settings())
