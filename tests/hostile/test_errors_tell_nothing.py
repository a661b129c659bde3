"""A server that listens to what a node says when something fails."""

import json
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given
from hypothesis import settings as settings_of
from hypothesis import strategies as st
from safetensors import SafetensorError

import strategies
from clients import app, channel, guard, proxy, trainer
from clients.channel import FAILED, Place
from clients.excuse import excuse
from clients.owner import Refused
from fedlora import settings, wire
from fedlora.errors import MethodError, UserError
from fedlora.orders import Order
from fedlora.views import fingerprint, manifest
from fedlora.wire import Parcel
from tests.federation import World

SECRET = "my pin is 7341, in /home/owner/rows.csv"
KINDS: list[type[Exception]] = [
    *(ValueError, KeyError, UserError, MethodError, OSError, SafetensorError, RecursionError),
]
PLACES = [
    "fedlora.resident.Resident.most",
    "fedlora.resident.Resident.load",
    "fedlora.resident.Resident.federation",
    "fedlora.tasks.classification.Classification.losses",
    "fedlora.tasks.classification.Classification.batch",
    "fedlora.privacy.training.train",
    "clients.app.client_id",
    "clients.participant.train",
    "clients.app._ordered",
    "clients.app.Store",
    "strategies.fedit.FedIT.trains",
]
EVALUATING = {"fedlora.tasks.classification.Classification.batch"}


@pytest.fixture
def node(world: World, tmp_path: Path) -> dict[str, Any]:
    """An owner's settings."""
    rows = [x for x in world.data.read_text().splitlines() if '"books"' in x]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    return {
        "client": "books",
        "data": str(tmp_path / "rows.jsonl"),
        "model": str(world.model),
        "state-dir": str(tmp_path / "state"),
    }


@pytest.fixture
def context(world: World, node: dict[str, Any], tmp_path: Path) -> Callable[..., Context]:
    """A run on the node, with settings by dotted key, and others of the owner's."""

    def make(own: dict[str, Any] | None = None, **flat: Any) -> Context:
        given = {k.replace("__", ".", 1): v for k, v in flat.items()}
        tree = world.tree(tmp_path, {"strategy.name": "fedit", **given})
        config, _ = settings.resolve(tree, strategies.load)
        return Context(1, 1, node | (own or {}), RecordDict(), settings.to_flat(config))

    return make


def asked(context: Context, kind: str = "query", parcel: Parcel | None = None) -> dict[str, Any]:
    """The facts that the node's trainer answers."""
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    message = Message(wire.pack(parcel or Parcel()), 1, kind)
    reply, _ = trainer.handle(message, context, 0)
    assert not reply.has_error()
    return wire.unpack(reply.content).facts


def order(context: Context, basis: str = "", work: str = "train", **given: Any) -> Parcel:
    view = app.resident(context).adapter.initial()
    digest = fingerprint(manifest(view))
    facts = {"basis": basis, "fingerprint": digest, "planned": 3, "server_rows": True, **given}
    one = Order("e", 1, work, "books", 4, 2.0, 9, "0001-0", **facts)
    return Parcel(one.facts(), {} if basis else view)


def failing(monkeypatch: pytest.MonkeyPatch, place: str, error: Exception) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    name = place.rpartition(".")[2]
    monkeypatch.setattr(place, property(fail) if name in ("most", "federation") else fail)


@pytest.mark.parametrize("place", PLACES)
def test_every_failure_of_a_private_run_is_the_same(
    context: Callable[..., Context], monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Promise: what a node says of a failure in a private run says nothing else than that, whatever
    failed where."""
    here = context(privacy__epsilon=3.0)
    work = "evaluate" if place in EVALUATING else "train"
    parcel = order(here, work=work)
    for kind in (ValueError, MethodError):
        with monkeypatch.context() as patch:
            failing(patch, place, kind(SECRET))
            assert asked(here, work, parcel) == {"status": "error", "reason": FAILED}


@pytest.mark.parametrize("place", [p for p in PLACES if "FedIT" not in p])
def test_no_failure_of_a_plain_run_quotes_anything(
    context: Callable[..., Context], monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Promise: of what is neither a refusal nor a method's mistake a node says the kind."""
    here = context()
    work = "evaluate" if place in EVALUATING else "train"
    parcel = order(here, work=work)
    failing(monkeypatch, place.replace("privacy.", ""), ValueError(SECRET))
    found = asked(here, work, parcel)
    assert found == {"status": "error", "reason": "ValueError: its own log says more"}


@settings_of(max_examples=8)
@given(kind=st.sampled_from(KINDS), words=st.text(), epsilon=st.booleans())
def test_words_never_matter(kind: type[Exception], words: str, epsilon: bool) -> None:
    """Also where nobody can say any more what the run is."""
    private = {"privacy.epsilon": 3.0}
    for run in (private, {**private, "no.such": 1}, {"privacy.mode": "central", **private}):
        here = Context(1, 1, {"client": "books"}, RecordDict(), run)
        assert excuse(kind(words), here).facts == {"status": "error", "reason": FAILED}
    refused = excuse(Refused(words), Context(1, 1, {}, RecordDict(), private)).facts
    assert refused.get("reason", "") == words


def test_a_simulation_tells_all(world: World, context: Callable[..., Context]) -> None:
    """Whose rows are the researcher's own; of a private one, whose metrics may be published, the
    kind."""
    parts = {"partition-id": 0, "num-partitions": 3, "state-dir": "/s"}
    here = Context(1, 1, parts, RecordDict(), context().run_config)
    assert SECRET in excuse(ValueError(SECRET), here).facts["reason"]
    assert SECRET in excuse(UserError(SECRET), here).facts["reason"]
    assert excuse(MethodError(SECRET), here).facts == {"status": "wrong", "reason": SECRET}
    private = Context(1, 1, parts, RecordDict(), context(privacy__epsilon=3.0).run_config)
    assert "7341" not in excuse(ValueError(SECRET), private).facts["reason"]


@pytest.mark.parametrize("private", [{}, {"privacy__epsilon": 3.0}], ids=["plain", "private"])
@pytest.mark.parametrize("lost", [{"basis": "0000-9"}, {"own": 7}], ids=["view", "own"])
def test_what_is_stale_tells_no_path(
    context: Callable[..., Context], private: dict[str, Any], lost: dict[str, Any]
) -> None:
    """Promise: the server is told which of the two is lost, and nothing of where it was."""
    here = context(**private)
    found = asked(here, "train", order(here, **lost))
    assert found == {"status": "stale", "lost": "own" if "own" in lost else "view"}


@pytest.mark.parametrize(
    "wrong",
    [{"rank": SECRET}, {"epsilom": 3}, {"chat-template": "/home/owner/secret.jinja"}],
    ids=str,
)
def test_an_owner_s_settings_are_not_told(
    context: Callable[..., Context], wrong: dict[str, Any]
) -> None:
    """A mistake in them is for the owner to mend; the run asks for a template to look for it."""
    found = asked(context(wrong, model__chat_template="{{ messages }}"))
    assert found["status"] == "error"
    assert not any(word in str(found) for word in ("7341", "/home", "epsilom"))


def test_a_method_that_cannot_be_imported_tells_no_path(
    context: Callable[..., Context], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python says in which file of this machine something is missing."""
    (tmp_path / "theirs_et.py").write_text("from json import no_such_name\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    here = context({"methods": "theirs_et:Theirs"})
    here.run_config["strategy.name"] = "theirs_et:Theirs"
    found = asked(here)
    assert "cannot be loaded on this node" in found["reason"] and "/" not in found["reason"]


# On the way from the trainer to the server


class Call:
    """gRPC's side of a call; what is sent in place of a reply is in `told`."""

    def __init__(self, token: str) -> None:
        self._token, self.told = token, ""

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return [("authorization", f"Bearer {self._token}")]

    def add_callback(self, _: object) -> bool:
        return True

    def abort(self, code: grpc.StatusCode, details: str) -> None:
        self.told = f"{code.name}: {details}"
        raise RuntimeError("aborted")


@pytest.mark.parametrize(
    "pieces",
    [
        [b"{"],
        [json.dumps({"about": {}, "heads": 1, "sizes": [1]}).encode(), b"\xff"],
        [json.dumps({"about": {}, "heads": 1, "sizes": [1 << 60]}).encode(), b"short"],
    ],
    ids=["no JSON", "no message", "not whole"],
)
def test_grpc_tells_no_exception_s_words(pieces: list[bytes]) -> None:
    """Promise: what leaves a trainer is a reply, or one constant."""
    call: Any = Call("token")
    with pytest.raises(RuntimeError, match="aborted"):
        trainer.Trainer("token").answer(iter(pieces), call)
    assert call.told == f"INTERNAL: {FAILED}"


class Broken(grpc.RpcError):
    """As gRPC raises it at the caller's."""

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNKNOWN

    def details(self) -> str:
        return SECRET


@pytest.mark.parametrize("error", [Broken(), OSError(SECRET), ValueError(SECRET)], ids=str)
def test_flower_is_told_one_constant(
    context: Callable[..., Context], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Promise: Flower sends an exception's words to the server, and those of a node's process are
    always the same."""

    def ask(*_: object) -> bytes:
        raise error

    monkeypatch.setattr(proxy, "start", lambda _: None)
    monkeypatch.setattr(proxy, "ask", ask)
    with pytest.raises(proxy.TrainerError) as found:
        proxy.forward(Message(RecordDict(), 1, "query"), context())
    assert str(found.value) == FAILED and found.value.__cause__ is None


def test_a_state_directory_is_not_told(context: Callable[..., Context]) -> None:
    """Nor what is wrong with it."""
    here = context({"state-dir": "/home/" + "x" * channel.LONGEST})
    with pytest.raises(ValueError, match="/home"):
        _ = Place(Path(str(here.node_config["state-dir"]))).address
    with pytest.raises(proxy.TrainerError) as found:
        proxy.forward(Message(RecordDict(), 1, "query"), here)
    assert str(found.value) == FAILED


@pytest.fixture
def sealed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    module = guard.flower()
    for name in (guard.INSTALL, guard.LOAD, guard.ERROR):
        monkeypatch.setattr(module, name, getattr(module, name))
    guard.seal(module)
    return module


def test_what_fails_around_the_app_tells_no_path(
    sealed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promise: nor does Flower's own process for a message, by its own code. A bundle that is
    refused is still told why."""
    pushed: list[Message] = []
    context = Context(1, 1, {}, RecordDict(), {})
    fab = SimpleNamespace(content=b"", hash_str="")
    run = SimpleNamespace(fab_id="", fab_version="", run_id=1)
    message = Message(RecordDict(), 1, "query")
    monkeypatch.setattr(sealed, "pull_task_input", lambda _: (message, context, run, fab))
    monkeypatch.setattr(sealed, "push_message", lambda _, reply, __: pushed.append(reply))
    for name in ("event", "register_signal_handlers", "flwr_exit", "HeartbeatSender", "log"):
        monkeypatch.setattr(sealed, name, lambda *_, **__: SimpleNamespace(start=lambda: None))
    monkeypatch.setattr(sealed, "get_project_dir", lambda *_: Path("/home/owner"))

    def run_it() -> str:
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
        sealed.run_clientapp("127.0.0.1:1", "token", True, runtime_dependency_install=False)
        return str(pushed[-1].error.reason)

    assert "refuses the run's app bundle" in run_it()
    monkeypatch.setattr(sealed, guard.INSTALL, lambda *_, **__: None)
    monkeypatch.setattr(guard, "APP", "no_such_module_of_ours:app")
    assert run_it() == FAILED
    assert import_module("flwr.app.error").Error is not sealed.Error
