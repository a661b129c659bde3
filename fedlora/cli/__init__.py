"""The command line. It alone of the library looks up, at the simulation and the methods."""

import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from fedlora import files, quantised
from fedlora.errors import Failed, Stopped, UserError
from fedlora.untrusted import Log, block

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
    """Entry point: a person's mistake is one message and exit code 2, a run that failed 1."""
    quantised.late()
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.basicConfig(level=logging.WARNING, handlers=[Log("%(name)s: %(message)s")])
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries, each said twice
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # of kernels that it does without
    try:
        app()
    except (UserError, Failed) as e:
        fail(e)
        sys.exit(1 if isinstance(e, Failed) else 2)
    except OSError as e:  # a disk that is full, a folder that is another's
        fail(Failed(files.trouble(e)))
        sys.exit(1)
    except Stopped as e:
        print(block(str(e)), file=sys.stderr)
        sys.exit(130)


def fail(error: Exception) -> None:
    """Say why, on standard error. An error may quote a node or a server."""
    text = f"error: {block(str(error))}"
    Console(stderr=True).print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)


def split(arguments: list[str] | None) -> tuple[Path | None, list[str]]:
    """The configuration file, if the first argument is one, and the settings."""
    given = list(arguments or [])
    path = Path(given.pop(0)) if given and "=" not in given[0] else None
    return path, given


def tree_of(arguments: list[str] | None) -> dict[str, Any]:
    from fedlora import settings

    return settings.read(*split(arguments))


def resumed(name: str, tree: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A run's directory, and its configuration with what may be changed."""
    from fedlora import settings
    from fedlora.runs import RunDir

    given = tree.get("run", {})
    if set(tree) - {"run"} or set(given) - {"rounds", "dir"}:
        raise UserError("a resumed run keeps its configuration; only run.rounds may be given")
    found = RunDir.open(name, given.get("dir", "runs"))
    saved = settings.read(found.path / "config.toml", [])
    rounds = {"run": {"rounds": given["rounds"]}} if "rounds" in given else {}
    return found, settings.merged(saved, rounds)


def watch(given: Any) -> Any:
    """Who watches a run of this configuration, once it is told where the log is."""
    from fedlora.progress import Progress

    return lambda log: Progress(given.run.rounds, Console(), log, not given.privacy.central)


# Each adds its commands to the app.
from fedlora.cli import (  # noqa: E402, F401
    chat,
    check,
    compare,
    config,
    evaluate,
    export,
    methods,
    new_strategy,
    node,
    report,
    run,
    submit,
)
