"""Flower's command line, asked as a person would ask it: start a run, follow, look, stop.

Each call is the `flwr` beside this Python. It answers in JSON, and exits 0 whatever happened. In a
session of its own, so that Ctrl-C in a terminal stops nobody but fedlora.
"""

import json
import os
import socket
import ssl
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedlora.errors import UserError
from fedlora.settings import nearest

START = 300.0  # seconds to build a bundle and have it accepted
ASK = 60.0  # seconds for any other answer
PROBE = 10.0  # seconds for a superlink's port to answer
QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "PYTHONUNBUFFERED": "1"}


class NoAnswer(Exception):
    """Flower said no, or nothing in time; the message is its own."""

    @property
    def unknown(self) -> bool:
        """The superlink knows of no such run: it was started anew without its database."""
        return "not found" in str(self).lower()


@dataclass(frozen=True)
class Status:
    """What the superlink says of a run: "running", "finished:completed", and why."""

    text: str
    details: str

    @property
    def finished(self) -> bool:
        return self.text.startswith("finished")

    @property
    def completed(self) -> bool:
        return self.text == "finished:completed"


@dataclass(frozen=True)
class Connection:
    """A superlink as `$FLWR_HOME/config.toml` names it."""

    name: str
    address: str
    certificates: Path | None

    @classmethod
    def named(cls, name: str) -> "Connection":
        """Raises UserError where there is none, naming those that there are."""
        path = Path(os.environ.get("FLWR_HOME") or Path.home() / ".flwr") / "config.toml"
        try:
            tables = tomllib.loads(path.read_text("utf-8")).get("superlink", {})
        except FileNotFoundError:
            tables = {}
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
            raise UserError(f"Flower's connections in {path} cannot be read: {e}") from None
        known = {k: v for k, v in tables.items() if isinstance(v, dict) and _remote(v)}
        if name not in known:
            there = f"there are {', '.join(known)}" if known else "there are none"
            raise UserError(
                f"no superlink is called '{name}' in {path}{nearest(name, known)} ({there}): add\n"
                f'[superlink.{name}]\naddress = "HOST:8000"\nroot-certificates = "CA.crt"'
            )
        certificates = known[name].get("root-certificates")
        found = path.parent / Path(certificates).expanduser() if certificates else None
        return cls(name, str(known[name]["address"]), found)

    def start(self, app: Path) -> str:
        """The id of a run of this app. Raises UserError where the superlink does not take it."""
        try:
            answer = self._asked("run", str(app), self.name, timeout=START)
        except NoAnswer as e:
            raise UserError(f"no run was started on {self.name}: {self.fault() or e}") from None
        return str(answer["run-id"])

    def status(self, run: str) -> Status:
        """Raises NoAnswer where the superlink cannot be asked or does not know the run."""
        found = self._asked("list", self.name, "--run-id", run)["runs"][0]
        return Status(str(found["status"]), str(found.get("status-details", "")))

    def stop(self, run: str) -> None:
        """Raises NoAnswer where the run cannot be stopped."""
        self._asked("stop", run, self.name)

    def log(self, run: str) -> "subprocess.Popen[str]":
        """The run's log from its start, on standard output, and on as it comes."""
        return subprocess.Popen(
            [_flwr(), "log", run, self.name, "--stream"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | QUIET,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )

    def fault(self) -> str:
        """What is wrong with the connection itself, or "" where a superlink can be reached. Flower
        has one sentence for all of it."""
        host, _, port = self.address.rpartition(":")
        where = f"the superlink at {self.address}"
        if self.certificates and not self.certificates.is_file():
            return f"its root-certificates, {self.certificates}, is no file"
        try:
            with socket.create_connection((host.strip("[]"), int(port)), PROBE) as link:
                if self.certificates:
                    context = ssl.create_default_context(cafile=str(self.certificates))
                    context.wrap_socket(link, server_hostname=host.strip("[]")).close()
        except ssl.SSLCertVerificationError as e:
            return (
                f"{where} shows a certificate that {self.certificates} does not vouch for "
                f"({e.verify_message}): ask its operator for the right root certificate"
            )
        except ssl.SSLError as e:
            return f"{where} does not speak TLS as {self.certificates} asks for ({e.reason or e})"
        except (OSError, ValueError) as e:
            return f"{where} cannot be reached ({e}): check the address, or start it"
        return ""

    def _asked(self, *words: str, timeout: float = ASK) -> dict[str, Any]:
        try:
            done = subprocess.run(
                [_flwr(), *words, "--format", "json"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                env=os.environ | QUIET,
                encoding="utf-8",
                errors="replace",
                timeout=timeout,
                start_new_session=True,
            )
        except subprocess.TimeoutExpired:
            raise NoAnswer(f"flwr {words[0]} gave no answer in {timeout:.0f} s") from None
        try:
            answer = json.loads(done.stdout[done.stdout.find("{") :])
        except json.JSONDecodeError:
            answer = {"error-message": done.stdout + done.stderr}
        if not answer.get("success"):
            said = str(answer.get("error-message", "")).strip()
            raise NoAnswer(said.split("\n\n")[-1] or "flwr gives no reason")
        return dict(answer)


def _remote(table: dict[str, Any]) -> bool:
    """Flower's own local engines have a word with a colon in front for an address."""
    return not str(table.get("address", ":")).startswith(":")


def _flwr() -> str:
    return str(Path(sys.executable).with_name("flwr"))
