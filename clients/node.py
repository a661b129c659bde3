"""Starting a node: its owner's settings are checked, its folder is made, and Flower's supernode
takes this process over.

    <state-dir>/          only its owner may enter
        bin/              comes first in PATH: `clients.guard` under the names of Flower's commands
        node.toml         the owner's settings, as they were checked
        flwr/             Flower's own folder
        datasets/         the rows as they were read
        trainer/          see clients.channel
"""

import os
import re
import shlex
import socket
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import tomli_w

from clients import guard, keys
from clients.channel import Place
from clients.owner import Owner
from fedlora import files
from fedlora.errors import UserError

PAIR = re.compile(r"(\S+?)=('[^']*'|\"[^\"]*\"|\S+)")  # as Flower reads --node-config
POLL = "0.2"  # seconds between looks for a message that has come to this node


@dataclass(frozen=True)
class Superlink:
    """Where a node connects to, and by what each side knows the other."""

    address: str
    certificates: Path | None = None  # None: the system's
    key: Path | None = None
    insecure: bool = False

    def verify(self) -> None:
        """Raises UserError where these are wrong or do not go together."""
        host, _, port = self.address.rpartition(":")
        if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise UserError(f"--superlink is HOST:PORT, without https://, and not {self.address!r}")
        if self.insecure and (self.certificates or self.key):
            raise UserError(
                "--insecure goes with neither --root-certificates nor --key: without TLS there is "
                "nobody to verify, and Flower takes no keys"
            )
        if self.certificates and not self.certificates.is_file():
            raise UserError(f"--root-certificates: there is no file {self.certificates}")

    @property
    def host(self) -> str:
        return self.address.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def options(self) -> list[str]:
        """For `flower-supernode`."""
        given = [f"--superlink={self.address}"]
        if self.insecure:
            given.append("--insecure")
        if self.certificates:
            given.append(f"--root-certificates={self.certificates.resolve()}")
        if self.key:
            given.append(f"--auth-supernode-private-key={self.key.resolve()}")
        return given


def settings_of(text: str) -> dict[str, Any]:
    """The settings in `key=value …` or in a .toml file; texts have quotes. Flower passes over what
    it does not understand, which may have been a limit: here it is a UserError."""
    if text.strip().endswith(".toml") and "=" not in text:
        try:
            given = tomllib.loads(Path(text.strip()).expanduser().read_text("utf-8"))
        except (OSError, ValueError) as e:
            raise UserError(f"--node-config: {text.strip()} cannot be read: {e}") from None
    else:
        given = {}
        for key, value in PAIR.findall(text):
            if key in given:
                raise UserError(f"--node-config has {key} twice")
            given[key] = _value(key, value)
        if rest := PAIR.sub("", text).strip():
            raise UserError(
                f"--node-config: {rest!r} is no setting: write key=value without spaces around the "
                "equals sign, and quotes around text with spaces"
            )
    for key, value in given.items():
        if not isinstance(value, bool | int | float | str):
            raise UserError(f"--node-config: {key} is to be a number or a text")
    return given


def _value(key: str, text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        raise UserError(
            f'--node-config: {key}={text} is neither a number nor a text in quotes, as {key}="…"'
        ) from None


def start(
    node_config: Mapping[str, Any],
    superlink: Superlink,
    port: int | None = None,
    health: int | None = None,
) -> NoReturn:
    """Become the node. Raises UserError where something is wrong that can be seen from here; under
    a budget that is whatever a run could find wrong with rows and model."""
    superlink.verify()
    owner = Owner.read(node_config)
    if superlink.key:
        keys.read(superlink.key)
    guard.flower()
    state = make_state(owner.state_dir)
    config = state / "node.toml"
    given = {**node_config, "state-dir": str(state)}
    files.write(config, tomli_w.dumps(given), mode=0o600)
    if owner.epsilon is not None:
        ready(state, config)
    command = [
        *(sys.executable, "-P", "-m", "clients.supernode"),
        *("--isolation=subprocess", "--host=127.0.0.1"),
        *(f"--port={port or free_port()}", f"--node-config={config}", *superlink.options()),
    ]
    if health:
        command.append(f"--health-server-address=127.0.0.1:{health}")
    os.execve(sys.executable, command, environment(state))


def ready(state: Path, config: Path) -> None:
    """Raises UserError where rows or model cannot be used. In another process, since this one is to
    become Flower's."""
    command = [sys.executable, "-P", "-m", "clients.ready", str(config)]
    done = subprocess.run(command, env=environment(state), stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise UserError(done.stdout.strip() or "the rows or the model cannot be used: see above")


def make_state(folder: Path) -> Path:
    """The node's folder with the guard in it, as an absolute path. Raises UserError where it cannot
    be had, or others may look into it."""
    state = folder.expanduser().absolute()
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        if fault := open_to_others(state):
            raise UserError(fault)
        Place(state).address  # noqa: B018  (too long a path is found now, not by the first message)
        bin = state / "bin"
        bin.mkdir(mode=0o700, exist_ok=True)
        for name in guard.commands():
            files.write(bin / name, script(), mode=0o700)
    except OSError as e:
        raise UserError(
            f"the state directory {state} cannot be used ({e}): correct state-dir"
        ) from None
    except ValueError as e:
        raise UserError(str(e)) from None
    return state


def open_to_others(state: Path) -> str:
    """What is wrong with the rights of a folder, or ""."""
    about = state.stat()
    if about.st_uid != os.getuid():
        return f"the state directory {state} belongs to another user: correct state-dir"
    if about.st_mode & 0o077:
        mode = f"{about.st_mode & 0o777:o}"
        return f"the state directory {state} is open to others (mode {mode}): chmod 700 {state}"
    return ""


def script() -> str:
    """What runs in place of Flower's commands. -P: the working directory is nobody's code."""
    python = shlex.quote(sys.executable)
    return f"#!/bin/sh\nexec {python} -P -c 'from clients.guard import main; main()' \"$@\"\n"


def environment(state: Path) -> dict[str, str]:
    """The node's environment: the guard is found before Flower's commands, those before others."""
    given = dict(os.environ)
    path = (str(state / "bin"), str(Path(sys.executable).parent), given.get("PATH", os.defpath))
    defaults = {
        "FLWR_HOME": str(state / "flwr"),
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": POLL,
        "HF_DATASETS_CACHE": str(state / "datasets"),  # should Datasets write anything of rows
    }
    return {
        **defaults,
        **given,
        "PATH": os.pathsep.join(path),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    }


def free_port() -> int:
    """A port of loopback that nobody has at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
