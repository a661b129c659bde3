"""The app that a run is: a pyproject.toml and no code, as both sides have fedlora installed."""

from pathlib import Path
from typing import Any

import tomli_w

from fedlora import __version__, settings
from fedlora.config import Config

SERVERAPP = "server.app:app"
CLIENTAPP = "clients.proxy:app"


def write(config: Config, folder: Path, name: str, resume: bool) -> None:
    """The bundle of a run whose directory is called `name`; `resume` goes on with it."""
    tables: dict[str, dict[str, Any]] = {}
    for key, value in settings.to_flat(config).items():
        section, _, field = key.partition(".")
        tables.setdefault(section, {})[field] = value
    tables["submit"] = {"run": name, "resume": resume}
    app = {
        "publisher": "fedlora",
        "components": {"serverapp": SERVERAPP, "clientapp": CLIENTAPP},
        "config": tables,
    }
    project = {
        "name": "fedlora",
        "version": __version__,
        "description": "A federated run of fedlora, which every node has installed.",
        "license": "Apache-2.0",
        "dependencies": [],
    }
    made = {"project": project, "tool": {"flwr": {"app": app}}}
    (folder / "pyproject.toml").write_text(tomli_w.dumps(made), "utf-8")
