"""A node runs only what its owner installed: bundles as Flower builds them, and Flower's own code
that would unpack and run them."""

import io
import subprocess
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.cli.build import build_fab_from_disk
from flwr.supercore.constant import TaskType
from flwr.supercore.superexec.executor.subprocess_executor import SubprocessExecutor
from flwr.supercore.superexec.executor.types import ExecutionSpec
from flwr.supercore.task_identity import TaskIdentity

import strategies
from clients import guard, node, proxy
from fedlora import settings
from fedlora.errors import UserError
from server import bundle

CODE = 'raise SystemExit("the bundle\'s code ran")'


@pytest.fixture
def built(tmp_path: Path) -> Callable[..., bytes]:
    """Makes an app as `fedlora submit` does, with further files, and has Flower build its bundle;
    `change` is (old, new) in its pyproject.toml."""

    def build(change: tuple[str, str] = ("", ""), **files: str) -> bytes:
        folder = tmp_path / "app"
        folder.mkdir()
        config, _ = settings.resolve({}, strategies.load)
        bundle.write(config, folder, "run", False)
        project = folder / "pyproject.toml"
        assert change[0] in project.read_text()
        project.write_text(project.read_text().replace(*change))
        for name, text in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return build_fab_from_disk(folder)

    return build


@pytest.fixture
def sealed(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Flower's module, sealed as in a node's process for one message."""
    module = guard.flower()
    for name in (guard.INSTALL, guard.LOAD, guard.ERROR):
        monkeypatch.setattr(module, name, getattr(module, name))  # and back after the test
    guard.seal(module)
    return module


def archive(*names: str) -> bytes:
    """A bundle made by hand."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as zipped:
        for name in names:
            zipped.writestr(name, "")
    return out.getvalue()


def test_what_submit_builds_is_taken(built: Callable[..., bytes]) -> None:
    """No code, an app of ours, and the papers that go with it."""
    guard.check(built(**{"README.md": "A run."}), skip_prompt=True)


@pytest.mark.parametrize(
    "name", ["evil.py", "clients/proxy.py", "clients/__init__.py", "data.json", "docs/README.md"]
)
def test_a_bundle_with_more_is_refused(built: Callable[..., bytes], name: str) -> None:
    """Code above all, even under our own names; the message tells which file."""
    with pytest.raises(UserError, match=f"'{name}'"):
        guard.check(built(**{name: CODE}))


@pytest.mark.parametrize(
    "change",
    [
        ("clients.proxy:app", "clients.app:app"),
        ("clients.proxy:app", "os:system"),
        ("clientapp = ", 'agentapp = "os:system"\nclientapp = '),
    ],
    ids=["another of ours", "any module", "an agent"],
)
def test_another_app_is_refused(built: Callable[..., bytes], change: tuple[str, str]) -> None:
    """A run cannot choose what is called among all that is installed."""
    with pytest.raises(UserError, match="its components are"):
        guard.check(built(change))


@pytest.mark.parametrize(
    "name",
    ["../pyproject.toml", "/pyproject.toml", "..\\evil", ".info/../evil.py", "README.md/evil.py"],
)
def test_ways_out_of_the_bundle_are_refused(name: str) -> None:
    """Paths are not even looked at further."""
    with pytest.raises(UserError, match="it holds"):
        guard.check(archive("pyproject.toml", name))


@pytest.mark.parametrize(
    "data", [b"", b"no archive", archive("README.md"), archive("pyproject.toml")]
)
def test_what_cannot_be_read_is_refused(data: bytes) -> None:
    """No archive, none with a project, none with components."""
    with pytest.raises(UserError, match="it is broken"):
        guard.check(data)


def test_flower_refuses_in_words_and_unpacks_nothing(
    sealed: ModuleType,
    built: Callable[..., bytes],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Flower's own handling of a message answers the server, and logs, what was wrong."""
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flwr"))
    reply = handled(sealed, built(**{"evil.py": CODE}), monkeypatch)
    assert reply.has_error() and "'evil.py'" in str(reply.error.reason)
    assert "'evil.py'" in caplog.text
    assert not (tmp_path / "flwr/apps").exists()


def test_flower_runs_the_installed_app(
    sealed: ModuleType,
    built: Callable[..., bytes],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """From the node's own packages, though the bundle was not unpacked anywhere."""
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flwr"))
    app = SimpleNamespace(seen=[])

    def answer(message: Message, context: Context) -> Message:
        app.seen.append(context.run_config)
        return Message(RecordDict(), reply_to=message)

    monkeypatch.setattr(proxy, "app", answer)
    assert not handled(sealed, built(), monkeypatch).has_error()
    assert app.seen == [{"run.rounds": 3}]
    assert not (tmp_path / "flwr/apps").exists()


def test_an_unknown_flower_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Flower no longer looks up what is replaced, nothing starts."""
    module = guard.flower()
    monkeypatch.setattr(module, "run_clientapp", lambda: None)
    with pytest.raises(UserError, match="install_from_fab"):
        guard.flower()
    with pytest.raises(SystemExit, match="error: this Flower"):
        guard.main()


def test_every_kind_of_app_goes_by_the_guard(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Flower would run an agent's code, say, by another command: by its own way of starting
    processes, all of them are ours."""
    note = f'#!/bin/sh\necho "$0" > {tmp_path}/$(basename "$0").new\n'
    note += f'mv {tmp_path}/$(basename "$0").new {tmp_path}/$(basename "$0")\n'
    monkeypatch.setattr(node, "script", lambda: note)
    state = node.make_state(tmp_path / "state")
    monkeypatch.setenv("PATH", node.environment(state)["PATH"])
    for kind in TaskType:
        spec = ExecutionSpec(kind, "127.0.0.1:1", "token", True, None, False, None, False, 1)
        SubprocessExecutor().launch(spec)
    until = time.monotonic() + 20
    while missing := [kind for kind in TaskType if not (tmp_path / kind.value).exists()]:
        assert time.monotonic() < until, f"Flower's own commands were started for {missing}"
        time.sleep(0.02)
    for kind in TaskType:
        assert (tmp_path / kind.value).read_text().strip() == str(state / "bin" / kind.value)


def test_the_script_is_flowers_command(tmp_path: Path) -> None:
    """It takes Flower's arguments, for an agent too."""
    state = node.make_state(tmp_path / "state")
    command = [str(state / "bin/flwr-agentapp"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Run a Flower ClientApp" in done.stdout


def handled(module: ModuleType, data: bytes, monkeypatch: pytest.MonkeyPatch) -> Message:
    """The reply that Flower's process for one message sends, with its way to the node replaced."""
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    message = Message(RecordDict(), 1, "train")
    message.metadata.__dict__["_message_id"] = "1"
    context = Context(1, 1, {}, RecordDict(), {"run.rounds": 3})
    run = SimpleNamespace(run_id=1, fab_id="fedlora/fedlora", fab_version="0.1.0")
    bundle = SimpleNamespace(content=data, hash_str="0" * 64)
    sent: list[Message] = []

    class Silent:
        def __init__(self, *_: Any, **__: Any) -> None:
            self.is_running = False

        def __getattr__(self, name: str) -> Any:
            return lambda *_, **__: None

    monkeypatch.setattr(module, "HeartbeatSender", Silent)
    monkeypatch.setattr(module, "RuntimeHttpClient", SimpleNamespace(from_server_address=Silent))
    monkeypatch.setattr(module, "register_signal_handlers", Silent)
    monkeypatch.setattr(module, "pull_task_input", lambda _: (message, context, run, bundle))
    monkeypatch.setattr(module, "push_message", lambda _, reply, __: sent.append(reply))
    monkeypatch.setattr(module, "flwr_exit", Silent)
    module.run_clientapp("127.0.0.1:1", "token", True)
    (reply,) = sent
    return reply
