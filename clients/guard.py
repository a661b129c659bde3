"""What Flower starts on a node in place of its own `flwr-clientapp`, for every message.

A run comes with an app bundle, which Flower would unpack and run. Here nothing of it is unpacked: a
bundle that holds more than its pyproject.toml, or asks for another app than `clients.proxy:app`, is
refused, and that app is what runs. So a node runs only the code that its owner installed.
"""

import io
import re
import sys
import tomllib
import zipfile
from importlib import import_module
from types import ModuleType
from typing import Any

from flwr.app.error import Error

from clients.channel import FAILED
from fedlora.errors import UserError

APP = "clients.proxy:app"
HARMLESS = re.compile(r"pyproject\.toml|\.info/[A-Z]+|(README|LICENSE|NOTICE)(\.md|\.txt)?")
LARGEST = 1 << 20  # bytes of a pyproject.toml

# What Flower does with a bundle, and what it tells the server of a failure.
INSTALL, LOAD, ERROR = "install_from_fab", "get_load_client_app_fn", "Error"


def main() -> None:
    """`flwr-clientapp`, with its arguments. Also in place of the commands by which Flower would run
    other kinds of apps: a bundle of theirs is refused like any other."""
    sys.argv[0] = "flwr-clientapp"
    try:
        seal(flower())
        command = import_module("flwr.supernode.cli.flwr_clientapp").flwr_clientapp
    except (UserError, ImportError, AttributeError) as e:
        sys.exit(f"error: {e}")
    command()


def commands() -> list[str]:
    """The names under which Flower starts apps. Raises UserError where it keeps them elsewhere."""
    try:
        return sorted(import_module("flwr.supercore.constant").TASK_TYPE_TO_COMMAND.values())
    except (ImportError, AttributeError) as e:
        raise _moved(str(e)) from None


def flower() -> ModuleType:
    """Flower's module that receives bundles. Raises UserError where this version does not look up
    there what is to be replaced: then it cannot be kept from running a bundle's code."""
    try:
        module = import_module("flwr.supernode.runtime.run_clientapp")
        used = module.run_clientapp.__code__.co_names
    except (ImportError, AttributeError) as e:
        raise _moved(str(e)) from None
    for name in (INSTALL, LOAD, ERROR):
        if not (hasattr(module, name) and name in used):
            raise _moved(f"run_clientapp does not use {name}")
    return module


def seal(module: ModuleType) -> None:
    """From now on bundles are looked at only, the app that runs is the installed one, and of what
    fails around it the server is told that it failed."""
    setattr(module, INSTALL, check)
    setattr(module, LOAD, _installed)
    setattr(module, ERROR, _told)


def check(bundle: bytes, **_: Any) -> None:
    """Raises UserError, which Flower logs here and sends to the server, where a bundle has code or
    is for another app."""
    try:
        with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
            names = archive.namelist()
            if other := [name for name in names if not HARMLESS.fullmatch(name)]:
                raise _refused(f"it holds {_shown(other)}")
            if archive.getinfo("pyproject.toml").file_size > LARGEST:
                raise _refused("its pyproject.toml is too large")
            project = tomllib.loads(archive.read("pyproject.toml").decode())
        components = dict(project["tool"]["flwr"]["app"]["components"])
    except UserError:
        raise
    except Exception as e:  # whatever a broken archive makes of the readers
        raise _refused(f"it is broken ({type(e).__name__})") from None
    components.pop("serverapp", None)
    if components != {"clientapp": APP}:
        raise _refused(f"its components are {components!r:.200}")


def _installed(**_: Any) -> Any:
    """In place of Flower's loader."""

    def load(*_run: Any) -> Any:
        module, _, attribute = APP.partition(":")
        return getattr(import_module(module), attribute)

    return load


def _told(code: int, reason: str | None = None) -> Error:
    """In place of Flower's, whose reason is any exception's words, with paths and all. A bundle
    that is refused is said so."""
    refused = (reason or "").startswith(str(UserError))
    return Error(code, reason if refused else FAILED)


def _refused(why: str) -> UserError:
    return UserError(
        f"this node refuses the run's app bundle: {why}. It runs {APP} as its owner installed it "
        "and no code that is sent: start runs by fedlora submit"
    )


def _moved(what: str) -> UserError:
    return UserError(
        f"this Flower's insides are not those that fedlora knows ({what}), so it cannot be kept "
        "from running code that is sent: install the version that fedlora asks for"
    )


def _shown(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(repr(name[:100]) for name in names[:3]) + more
