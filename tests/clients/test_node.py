"""Starting a node: what is refused, and what Flower's supernode is then given."""

import os
import stat
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from flwr.cli.supernode.register import try_load_public_key
from flwr.common.config import parse_config_args
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from typer.testing import CliRunner

from clients import keys, node
from clients.node import Superlink
from fedlora.cli import app
from fedlora.errors import UserError

supernode = import_module("flwr.supernode.cli.flower_supernode")


class Started(Exception):
    """In place of the process that would be Flower's now."""

    def __init__(self, path: Path, command: list[str], env: Mapping[str, str]) -> None:
        self.path, self.command, self.env = path, command, env


@pytest.fixture
def execve(monkeypatch: pytest.MonkeyPatch) -> None:
    def become(*given: Any) -> None:
        raise Started(*given)

    monkeypatch.setattr(os, "execve", become)


@pytest.fixture
def key(tmp_path: Path) -> Path:
    keys.make(tmp_path / "node.key")
    return tmp_path / "node.key"


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    path = tmp_path / "ca.crt"
    path.write_text("a certificate")
    return path


def started(node_config: Mapping[str, Any], to: Superlink, **ports: int) -> Started:
    with pytest.raises(Started) as found:
        node.start(node_config, to, **ports)
    return found.value


# The owner's settings


@pytest.mark.parametrize(
    "text",
    [
        """client="a b" data='/x y/"z".csv' rank=4 max-payload=0.5""",
        "client='' rank=-1",
        "",
    ],
)
def test_settings_are_read_as_flower_reads_them(text: str) -> None:
    """The same keys and values, so a node can be started by Flower's command too."""
    assert node.settings_of(text) == parse_config_args([text])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('client="a" epsilon = 3', "'epsilon = 3' is no setting"),
        ('client="a" 3', "'3' is no setting"),
        ("client=books", "client=books is neither"),
        ("rank=1 rank=2", "rank twice"),
        ("client=2020-01-01", "client is to be"),
        ("methods=['fedex']", "methods is to be"),
        ("nowhere.toml", "nowhere.toml cannot be read"),
    ],
)
def test_what_flower_would_pass_over_is_refused(text: str, told: str) -> None:
    """A limit that is misspelt is no limit, so nothing is ignored."""
    with pytest.raises(UserError, match=told):
        node.settings_of(text)


def test_settings_may_be_in_a_file(tmp_path: Path) -> None:
    """As Flower has it."""
    file = tmp_path / "owner.toml"
    file.write_text('client = "a"\nmax-rounds = 3\n')
    assert node.settings_of(str(file)) == {"client": "a", "max-rounds": 3}


# What is started


def test_the_supernode_is_given_all_that_was_said(
    execve: None, tmp_path: Path, key: Path, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flower's own parser takes the command: address, certificates, key, port, the settings with
    an absolute state-dir; app processes of this node are reached on loopback only."""
    monkeypatch.chdir(tmp_path)
    given = {"client": 'it\'s "one"', "state-dir": "state", "max-payload": 2.5}
    now = started(given, Superlink("host:8000", certificate, key), port=4321, health=4322)
    assert now.command[1:4] == ["-P", "-m", "clients.supernode"]
    monkeypatch.setattr("sys.argv", now.command[3:])
    args = supernode._parse_args_run_supernode().parse_args()
    assert (args.superlink, args.insecure, args.isolation) == ("host:8000", False, "subprocess")
    assert (args.host, args.port) == ("127.0.0.1", 4321)
    assert args.health_server_address == "127.0.0.1:4322"
    assert Path(args.root_certificates) == certificate
    assert not args.runtime_dependency_install
    private, _ = supernode._try_setup_client_authentication(args) or (None, None)
    assert private and public_key_to_bytes(private.public_key()) == try_load_public_key(
        key.with_name("node.key.pub")
    )
    parsed = parse_config_args([args.node_config])
    assert parsed == {**given, "state-dir": str(tmp_path / "state")}


def test_a_node_finds_the_guard_first_and_stays_private(
    execve: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PATH begins with the guard's scripts; only the owner may enter the folder; Flower keeps to
    it, sends no telemetry and installs nothing."""
    monkeypatch.setenv("PATH", "/somewhere")
    monkeypatch.delenv("FLWR_HOME", raising=False)
    monkeypatch.setenv("FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION", "0")
    monkeypatch.setenv("MINE", "stays")
    state = tmp_path / "state"
    now = started({"client": "a", "state-dir": str(state)}, Superlink("host:1", insecure=True))
    first, *others = now.env["PATH"].split(os.pathsep)
    assert first == str(state / "bin") and others[-1] == "/somewhere"
    assert now.env["FLWR_HOME"] == str(state / "flwr") and now.env["MINE"] == "stays"
    assert now.env["FLWR_TELEMETRY_ENABLED"] == "0"
    assert now.env["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
    assert {stat.S_IMODE(p.stat().st_mode) for p in (state, state / "bin")} == {0o700}
    assert {stat.S_IMODE(p.stat().st_mode) for p in (state / "bin").iterdir()} == {0o700}
    assert stat.S_IMODE((state / "node.toml").stat().st_mode) == 0o600
    assert any(word.startswith("--port=") and word != "--port=0" for word in now.command)


def test_a_second_start_in_the_same_folder_is_the_same(execve: None, tmp_path: Path) -> None:
    """A service manager starts it again and again."""
    given = {"client": "a", "state-dir": str(tmp_path / "state")}
    to = Superlink("host:1", insecure=True)
    assert started(given, to, port=9).command == started(given, to, port=9).command


# What is refused


@pytest.mark.parametrize("address", ["host", "https://host:8000", "host:0", "host:x", ":8000"])
def test_an_address_is_host_and_port(execve: None, address: str) -> None:
    """And nothing is tried with another."""
    with pytest.raises(UserError, match="HOST:PORT"):
        node.start({"client": "a"}, Superlink(address))


def test_without_tls_there_are_no_keys(execve: None, key: Path, tmp_path: Path) -> None:
    """Flower would refuse it, much later and in other words; a missing certificate too."""
    with pytest.raises(UserError, match="--insecure goes with neither"):
        node.start({"client": "a"}, Superlink("host:1", key=key, insecure=True))
    with pytest.raises(UserError, match="there is no file"):
        node.start({"client": "a"}, Superlink("host:1", tmp_path / "ca.crt", key))


def test_a_key_open_to_others_is_refused(execve: None, key: Path, tmp_path: Path) -> None:
    """Nothing is made before that is found, either."""
    key.chmod(0o640)
    with pytest.raises(UserError, match=r"open to others \(mode 640\)"):
        node.start({"client": "a", "state-dir": str(tmp_path / "s")}, Superlink("h:1", key=key))
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("mode", [0o755, 0o710, 0o702])
def test_a_folder_open_to_others_is_refused(execve: None, tmp_path: Path, mode: int) -> None:
    """What is in it is not for them, and what they put there might be run."""
    tmp_path.chmod(mode)
    with pytest.raises(UserError, match=f"open to others .mode {mode:o}.: chmod 700"):
        node.start({"client": "a", "state-dir": str(tmp_path)}, Superlink("host:1", insecure=True))


def test_a_folder_that_cannot_be_is_refused(execve: None, tmp_path: Path) -> None:
    """A file in its place; a path too long for the trainer's socket."""
    (tmp_path / "file").touch()
    for place, told in (("file", "cannot be used"), ("x" * 100, "shorter state-dir")):
        given = {"client": "a", "state-dir": str(tmp_path / place)}
        with pytest.raises(UserError, match=told):
            node.start(given, Superlink("host:1", insecure=True))


def test_wrong_settings_end_with_words_and_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the command line, before anything of Flower's starts."""
    words = [
        "fedlora",
        "node",
        "start",
        "--superlink=host:1",
        '--node-config=client="a" epsillon=3',
    ]
    monkeypatch.setattr("sys.argv", words)
    from fedlora.cli import main

    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "did you mean 'epsilon'" in capsys.readouterr().err


# Keys


def test_keys_are_those_that_flower_takes(tmp_path: Path) -> None:
    """The private one by its supernode, the public one by its register, and they are a pair."""
    done = CliRunner().invoke(app, ["node", "key", str(tmp_path / "node.key")])
    assert done.exit_code == 0, done.output
    private = keys.read(tmp_path / "node.key")
    assert keys.fingerprint(private.public_key()) in done.output
    registered = try_load_public_key(tmp_path / "node.key.pub")
    assert registered == public_key_to_bytes(private.public_key())
    assert isinstance(private.curve, ec.SECP384R1)
    assert stat.S_IMODE((tmp_path / "node.key").stat().st_mode) == 0o600


@pytest.mark.parametrize("there", ["node.key", "node.key.pub"])
def test_a_key_is_never_overwritten(tmp_path: Path, there: str) -> None:
    """Neither part of it, nor is the other part left behind then."""
    (tmp_path / there).write_text("somebody's")
    with pytest.raises(UserError, match=f"{there} exists"):
        keys.make(tmp_path / "node.key")
    assert [p.name for p in tmp_path.iterdir()] == [there]
    assert (tmp_path / there).read_text() == "somebody's"


def test_keys_of_other_kinds_are_refused(tmp_path: Path) -> None:
    """None, no key at all, another curve."""
    path = tmp_path / "key"
    with pytest.raises(UserError, match="cannot be read"):
        keys.read(path)
    path.touch(0o600)
    with pytest.raises(UserError, match="OpenSSH"):
        keys.read(path)
    other = ec.generate_private_key(ec.SECP256R1())
    path.write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    with pytest.raises(UserError, match="P-384"):
        keys.read(path)
