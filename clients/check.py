"""Whether a node is ready to join: what can be known without joining, each told in a line."""

import logging
import shutil
import socket
import ssl
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from clients import guard, keys, ranks
from clients.channel import Place
from clients.node import Superlink, open_to_others, settings_of
from clients.owner import Owner
from fedlora import settings
from fedlora.config import Config
from fedlora.errors import UserError
from fedlora.resident import Resident

DEADLINE = 5.0  # seconds for each step of a connection
ROOM = 200  # MB that a node's folder needs at least

log = logging.getLogger("fedlora.check")


class Unknown(Exception):
    """What could not be looked at, and why."""


@dataclass(frozen=True)
class Line:
    """One check: `ok` is None where it could not be made."""

    check: str
    ok: bool | None
    detail: str


class Check:
    """The checks of one node; each method says what it found, or raises."""

    def __init__(self, node_config: str, config: Config, superlink: Superlink) -> None:
        self._text, self._config, self._superlink = node_config, config, superlink

    def lines(self) -> list[Line]:
        """All checks, in the order in which a mistake is best mended."""
        checks: dict[str, Callable[[], str]] = {
            "owner's settings": self.settings,
            "versions": self.versions,
            "key": self.key,
            "superlink": self.superlink,
            "state directory": self.state,
            "trainer's socket": self.socket,
            "run is allowed": self.allowed,
            "data": self.data,
            "device": self.device,
            "model": self.model,
            "training step": self.step,
        }
        return [_line(name, check) for name, check in checks.items()]

    @cached_property
    def _given(self) -> dict[str, Any]:
        return settings_of(self._text)

    @cached_property
    def _owner(self) -> Owner:
        return Owner.read(self._given)

    @property
    def _settled(self) -> Owner:
        try:
            return self._owner
        except UserError:
            raise Unknown("the owner's settings are wrong") from None

    @cached_property
    def _resident(self) -> Resident:
        """As the trainer has it."""
        from flwr.app import Context, RecordDict

        from clients import app

        flat = settings.to_flat(self._config)
        return app.resident(Context(0, 0, self._given, RecordDict(), flat))

    @cached_property
    def _devices(self) -> list[str] | UserError:
        """What several devices are called, or why they cannot be used; none where there is one."""
        try:
            return ranks.names(self._settled)
        except UserError as e:
            return e

    @property
    def _allowed(self) -> Resident:
        if isinstance(self._devices, UserError):
            raise Unknown("the devices cannot be used")
        try:
            return self._resident
        except UserError:
            raise Unknown("the run is not allowed") from None

    @property
    def loaded(self) -> Resident:
        """The run over the node's own rows, which are read. Raises Unknown where it cannot be."""
        own = self._allowed
        try:
            own.federation  # noqa: B018
        except Exception:
            raise Unknown("the data cannot be used") from None
        return own

    def settings(self) -> str:
        owner = self._owner
        limits = [f"at most {owner.max_rounds} rounds of {owner.max_steps} steps"]
        if owner.rank:
            limits.append(f"rank {owner.rank}")
        if owner.epsilon is not None:
            limits.append(f"ε {owner.epsilon:g} over all runs")
        methods = ", ".join(owner.methods) if owner.methods else "the built-in methods"
        return f"client {owner.client or '(none)'}; {methods}; {', '.join(limits)}"

    def versions(self) -> str:
        guard.flower()
        guard.commands()
        python = ".".join(map(str, sys.version_info[:3]))
        found = [f"{name} {version(name)}" for name in ("fedlora", "flwr", "torch")]
        return ", ".join([*found, f"Python {python}"])

    def key(self) -> str:
        if not self._superlink.key:
            raise Unknown("no --key was given")
        public = keys.read(self._superlink.key).public_key()
        return f"P-384, {keys.fingerprint(public)}: the operator can compare it"

    def superlink(self) -> str:
        if not self._superlink.address:
            raise Unknown("no --superlink was given")
        return reach(self._superlink)

    def state(self) -> str:
        folder = self._settled.state_dir.expanduser().absolute()
        there = next(f for f in (folder, *folder.parents) if f.exists())
        if there == folder and (fault := open_to_others(folder)):
            raise UserError(fault)
        try:
            with tempfile.TemporaryFile(dir=there) as file:
                file.write(b"0")
        except OSError as e:
            raise UserError(f"nothing can be written in {there} ({e.strerror})") from None
        free = shutil.disk_usage(there).free // 10**6
        if free < ROOM:
            raise UserError(f"{there} has {free} MB left: make room for {ROOM} MB at least")
        made = "" if there == folder else ", which node start makes"
        return f"{folder}{made}; {free:,} MB free"

    def socket(self) -> str:
        try:
            return Place(self._settled.state_dir).address
        except ValueError as e:
            raise UserError(str(e)) from None

    def allowed(self) -> str:
        config = self._config
        self._settled.allow(settings.to_flat(config), 0)
        return f"{config.strategy['name']}, {config.run.rounds} rounds"

    def data(self) -> str:
        rows = self._allowed.federation
        client = self._client
        names = Counter(rows.rows.select(rows.trained[client])["label"])
        counts = ", ".join(f"{label} {names[i]}" for i, label in enumerate(rows.labels))
        trained, held = len(rows.trained[client]), len(rows.held[client])
        config = self._resident.config
        self._settled.allow_rows(config, trained)
        steps = config.train.steps_a_round(trained)
        told = f" ({counts})" if counts else ""
        cut = self._resident.truncation()
        parts = [f"{trained} rows to train on{told}, {held} held out; {steps} steps a round", cut]
        if faults := len(self._resident.faults):
            parts.append(f"{faults} rows cannot be used in this run, and count without a gradient")
        return "; ".join(part for part in parts if part)

    @property
    def _client(self) -> str:
        clients, id = self._resident.federation.clients, self._owner.client
        if id is None and len(clients) == 1:
            return clients[0]
        if id not in clients:
            raise UserError(f"client is {id}, and the data's are {', '.join(clients[:8])}")
        return id

    def device(self) -> str:
        import torch

        from fedlora.device import placed

        owner = self._settled
        if isinstance(self._devices, UserError):
            raise self._devices
        if self._devices:
            each = {"ddp": "the whole base", "fsdp": "a share of the base"}[owner.parallel]
            found = Counter(self._devices).items()
            told = ", ".join(f"{count} × {name}" for name, count in found)
            return f"{owner.device}: {told}; {owner.parallel}, {each} on each"
        name = placed(owner.device)
        try:
            torch.ones(1, device=name).add_(1)
        except (AssertionError, RuntimeError) as e:
            raise UserError(f"{name} cannot be used: {(str(e).splitlines() or ['?'])[0]}") from None
        if name.startswith("cuda"):
            return f"{name}: {torch.cuda.get_device_name(name)}"
        return f"{name}, threads: {owner.threads or torch.get_num_threads()}"

    def model(self) -> str:
        known = self.loaded.identity
        return f"base {known['base']}, tokenizer {known['tokenizer']}"

    def step(self) -> str:
        """Nothing of it is kept."""
        import torch

        from clients import trial

        if threads := self._settled.threads:
            torch.set_num_threads(threads)
        done = trial.step(self.loaded, self._client)
        return (
            f"{done.rows} rows, loss {done.loss:.3f}, {done.seconds:.2g} s; no weights leave this "
            "process"
        )


def reach(superlink: Superlink) -> str:
    """Connect, and verify the certificate as the node will. Raises UserError."""
    superlink.verify()
    where = f"{superlink.host}:{superlink.port}"
    try:
        with socket.create_connection((superlink.host, superlink.port), DEADLINE) as link:
            if superlink.insecure:
                return f"{where} answers; nothing is encrypted, and nobody is verified"
            context = ssl.create_default_context(cafile=superlink.certificates)
            with context.wrap_socket(link, server_hostname=superlink.host) as tls:
                until = ssl.cert_time_to_seconds(str((tls.getpeercert() or {})["notAfter"]))
                day = datetime.fromtimestamp(until, UTC).date()
                return f"{where} answers by {tls.version()}; its certificate is good until {day}"
    except ssl.SSLCertVerificationError as e:
        raise UserError(
            f"{where} shows a certificate that --root-certificates does not vouch for "
            f"({e.verify_message}): ask its operator for the right root certificate"
        ) from None
    except ssl.SSLError as e:
        raise UserError(
            f"{where} does not speak TLS, or the root certificate is none ({e})"
        ) from None
    except TimeoutError:
        raise UserError(
            f"{where} does not answer within {DEADLINE:g} s: is a firewall between?"
        ) from None
    except OSError as e:
        raise UserError(
            f"{where} cannot be reached ({e}): correct --superlink, or start it"
        ) from None


def _line(name: str, check: Callable[[], str]) -> Line:
    try:
        return Line(name, True, check())
    except Unknown as e:
        return Line(name, None, str(e))
    except UserError as e:
        return Line(name, False, str(e))
    except Exception as e:  # its words might quote a row: they are not shown
        last = traceback.extract_tb(e.__traceback__)[-1]
        log.debug("%s", name, exc_info=True)
        return Line(name, False, f"{type(e).__name__} in {Path(last.filename).name}:{last.lineno}")
