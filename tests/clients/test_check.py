"""What an owner is told before the node joins: each check can fail alone, and all are made."""

import contextlib
import ipaddress
import os
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from typer.testing import CliRunner

import strategies
from clients import check, guard, keys, node
from clients.check import Check, Line
from clients.node import Superlink
from fedlora import settings
from fedlora.cli import app
from fedlora.errors import UserError
from tests.federation import World

NOWHERE = Superlink("")
CHECKS = [
    *("owner's settings", "versions", "key", "superlink", "state directory", "trainer's socket"),
    *("run is allowed", "data", "device", "model", "training step"),
]


@pytest.fixture
def rows(world: World, tmp_path: Path) -> Path:
    """One owner's file, with a text that must not be shown."""
    lines = [x for x in world.data.read_text().splitlines() if '"books"' in x]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines).replace("filler1 ", "secret ") + "\n")
    assert "secret" in path.read_text()
    return path


@pytest.fixture
def checked(world: World, rows: Path, tmp_path: Path) -> Callable[..., dict[str, Line]]:
    """The lines of a node that is ready but for what is given: owner's settings by keyword (None
    leaves one out), `run` the run's, `to` the superlink."""

    def lines(
        run: dict[str, object] | None = None, to: Superlink = NOWHERE, **owner: object
    ) -> dict[str, Line]:
        given = {
            "client": "books",
            "data": str(rows),
            "model": str(world.model),
            "state-dir": str(tmp_path / "state"),
            **{k.replace("_", "-"): v for k, v in owner.items()},
        }
        words = [
            f'{k}="{v}"' if isinstance(v, str) else f"{k}={v}"
            for k, v in given.items()
            if v is not None
        ]
        config, _ = settings.resolve(world.tree(tmp_path, run or {}), strategies.load)
        return {line.check: line for line in Check(" ".join(words), config, to).lines()}

    return lines


def failed(lines: dict[str, Line]) -> set[str]:
    return {name for name, line in lines.items() if line.ok is False}


def test_a_node_that_is_ready(checked: Callable[..., dict[str, Line]], tmp_path: Path) -> None:
    """Counts by label and not a word of a row; digests; a step; and nothing is left behind."""
    lines = checked()
    assert list(lines) == CHECKS
    assert not failed(lines)
    assert {name for name, line in lines.items() if line.ok is None} == {"key", "superlink"}
    assert re.search(r"^81 rows to train on \(bad \d+, good \d+\), 9 held", lines["data"].detail)
    assert re.search(r"base [0-9a-f]{32}, tokenizer [0-9a-f]{32}", lines["model"].detail)
    assert re.search(r"8 rows, loss \d", lines["training step"].detail)
    assert "secret" not in "".join(line.detail for line in lines.values())
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("owner", "check", "told"),
    [
        ({"rank": -1}, "owner's settings", "rank = -1"),
        ({"device": "cuda:99"}, "device", "cuda:99 cannot be used"),
        ({"device": "cuda:0,99"}, "device", "there is no cuda:99"),
        ({"data": "/nowhere.csv"}, "data", "there is no file /nowhere.csv"),
        ({"text": "words"}, "data", "no column 'words'"),
        ({"max_steps": 3}, "run is allowed", "max-steps"),
        ({"methods": "fedit"}, "run is allowed", "methods"),
        ({"model": "/nowhere"}, "model", "no model folder"),
        ({"state_dir": "/proc/no"}, "state directory", "nothing can be written in /proc"),
        ({"state_dir": "/tmp/" + "x" * 100}, "trainer's socket", "longer than the 107 bytes"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_each_check_can_fail_and_the_others_go_on(
    checked: Callable[..., dict[str, Line]], owner: dict[str, object], check: str, told: str
) -> None:
    """Every line is there whatever fails, and the one that fails says what is wrong."""
    lines = checked(**owner)
    assert list(lines) == CHECKS
    assert check in failed(lines)
    assert told in lines[check].detail
    assert lines["versions"].ok


def test_the_run_is_held_against_the_rows(checked: Callable[..., dict[str, Line]]) -> None:
    """Epochs come to steps only with rows."""
    epochs = {"train.steps": None, "train.epochs": 9}
    lines = checked(run=epochs, max_steps=90)
    assert lines["run is allowed"].ok and failed(lines) == {"data"}
    assert "max-steps" in lines["data"].detail and "99" in lines["data"].detail


def test_what_needs_something_else_is_not_said_to_be_wrong(
    checked: Callable[..., dict[str, Line]],
) -> None:
    """One mistake is one failure."""
    lines = checked(data="/nowhere.csv")
    assert failed(lines) == {"data"}
    assert lines["model"] == Line("model", None, "the data cannot be used")


def test_a_folder_open_to_others(checked: Callable[..., dict[str, Line]], tmp_path: Path) -> None:
    """As node start would refuse it."""
    tmp_path.chmod(0o755)
    line = checked(state_dir=str(tmp_path))["state directory"]
    assert line.ok is False and "chmod 700" in line.detail


def test_little_room_is_told(
    checked: Callable[..., dict[str, Line]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk would end a run in its middle."""
    monkeypatch.setattr(check, "ROOM", 10**12)
    line = checked()["state directory"]
    assert line.ok is False and "make room" in line.detail


def test_a_flower_that_cannot_be_guarded(
    checked: Callable[..., dict[str, Line]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would run code that is sent."""
    monkeypatch.setattr(guard.flower(), "run_clientapp", lambda: None)
    assert failed(checked()) == {"versions"}


def test_what_a_library_raises_quotes_no_row(
    checked: Callable[..., dict[str, Line]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only its kind and where it was raised."""

    def train(*_: object) -> None:
        raise ValueError("bad row: secret")

    monkeypatch.setattr("fedlora.training.train", train)
    line = checked()["training step"]
    assert line.ok is False and re.fullmatch(r"ValueError in test_check.py:\d+", line.detail)


def test_a_key_is_shown_by_its_fingerprint(
    checked: Callable[..., dict[str, Line]], tmp_path: Path
) -> None:
    """The one that the public key has; a key open to others fails."""
    public = keys.make(tmp_path / "key")
    to = Superlink("", key=tmp_path / "key")
    line = checked(to=to)["key"]
    loaded = keys.read(tmp_path / "key").public_key()
    assert line.ok and keys.fingerprint(loaded) in line.detail
    (tmp_path / "key").chmod(0o644)
    assert failed(checked(to=to)) == {"key"} and public.exists()


# The superlink


@pytest.fixture
def certificate(tmp_path: Path) -> Callable[..., Path]:
    """Makes a certificate that signs itself; its key is beside it."""

    def make(name: str, host: str = "127.0.0.1", days: int = 30) -> Path:
        key = ec.generate_private_key(ec.SECP256R1())
        who = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        alternative = x509.IPAddress(ipaddress.ip_address(host))
        end = datetime.now(UTC) + timedelta(days=days)
        made = (
            x509.CertificateBuilder(who, who, key.public_key(), x509.random_serial_number())
            .not_valid_before(end - timedelta(days=60))
            .not_valid_after(end)
            .add_extension(x509.SubjectAlternativeName([alternative]), False)
            .sign(key, hashes.SHA256())
        )
        path = tmp_path / f"{name}.crt"
        path.write_bytes(made.public_bytes(Encoding.PEM))
        plain = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        path.with_suffix(".key").write_bytes(plain)
        return path

    return make


@contextlib.contextmanager
def listening(certificate: Path | None = None) -> Iterator[int]:
    """A port of loopback that takes connections, by TLS with a certificate, else in silence."""
    taken: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    link, _ = server.accept()
                    taken.append(link)
                    if certificate:
                        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                        context.load_cert_chain(certificate, certificate.with_suffix(".key"))
                        with contextlib.suppress(OSError):
                            taken.append(context.wrap_socket(link, server_side=True))

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)
            for link in taken:
                link.close()
            thread.join(5)


def test_a_superlink_that_can_be_verified(certificate: Callable[..., Path]) -> None:
    """And until which day."""
    own = certificate("own")
    with listening(own) as port:
        told = check.reach(Superlink(f"127.0.0.1:{port}", own))
    assert f"{(datetime.now(UTC) + timedelta(days=30)).date()}" in told


@pytest.mark.parametrize(
    ("shown", "told"),
    [
        ({"name": "other"}, "does not vouch for"),
        ({"name": "own", "host": "127.0.0.2"}, "does not vouch for .*IP address mismatch"),
        ({"name": "own", "days": -1}, "does not vouch for .*expired"),
    ],
    ids=["another authority", "another host", "expired"],
)
def test_a_certificate_that_is_not_right(
    certificate: Callable[..., Path], shown: dict[str, object], told: str
) -> None:
    """Each says why."""
    trusted, given = certificate("own"), certificate(**shown)
    trusted = given if shown["name"] == "own" else trusted
    with listening(given) as port, pytest.raises(UserError, match=told):
        check.reach(Superlink(f"127.0.0.1:{port}", trusted))


def test_a_superlink_that_is_silent_or_not_there(
    certificate: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is a deadline, and words for both."""
    monkeypatch.setattr(check, "DEADLINE", 0.2)
    own, began = certificate("own"), time.monotonic()
    with listening() as port, pytest.raises(UserError, match="does not answer within"):
        check.reach(Superlink(f"127.0.0.1:{port}", own))
    assert time.monotonic() - began < 15
    with pytest.raises(UserError, match="cannot be reached"):
        check.reach(Superlink(f"127.0.0.1:{node.free_port()}", own))
    with listening() as port:
        assert "nothing is encrypted" in check.reach(Superlink(f"127.0.0.1:{port}", insecure=True))


# The command


def test_the_command_shows_all_lines_and_fails_with_2(rows: Path, tmp_path: Path) -> None:
    """On a narrow console too, and what was not looked at."""
    given = f'client="a" data="{rows}" epsilon=3 threads=1 state-dir="{tmp_path / "[red]state"}"'
    words = ["node", "check", f"--node-config={given}", "--superlink=127.0.0.1"]
    before = os.umask(0o077)  # the command sets it for its process, which here is the tests'
    try:
        done = CliRunner().invoke(app, words)
    finally:
        os.umask(before)
    assert done.exit_code == 2, done.output
    assert all(name in done.output for name in CHECKS)
    assert "HOST:PORT" in done.output and "[red]state" in done.output
    assert "Only joining tells." in done.output
