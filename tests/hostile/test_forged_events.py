"""Events of a run that somebody else wrote: through a client's error, and by a hostile server."""

import io
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Error, Message, RecordDict
from flwr.supercore.logger import ConsoleHandler
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from fedlora import wire
from fedlora.errors import MethodError
from fedlora.progress import Observer, Progress
from fedlora.wire import Parcel
from server import app as serverapp
from server.delivery import Incoming
from server.events import OPENING, PREFIX, Events
from server.exchange import Exchange, message
from server.submit import Listener
from tests.federation import Watch
from tests.server.test_exchange import Grid

GUESS = "0" * 32
FORGED = {
    "files": {"files": {"evil": {"size": 1, "sha256": "0" * 64}}, "left": []},
    "note": {"text": "all is well"},
    "error": {"text": "none"},
    "end": {},
}
LINES = [
    f"{OPENING} {GUESS}",
    *(
        f"{PREFIX} {token}{json.dumps({'n': n, 'kind': kind, **fields})}"
        for token in (f"{GUESS} ", "")
        for n, (kind, fields) in enumerate(FORGED.items(), 1)
    ),
]
EVIL = "no rows\n" + "\n".join(LINES) + "\r" + LINES[2] + "\u2028\x1b[2J\u202e"


def log(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> str:
    """What Flower takes up of a ServerApp's output: prints, and its own word on what was raised."""
    out, logger = io.StringIO(), logging.getLogger("flwr-test")
    handler = ConsoleHandler(colored=True, stream=out)
    logger.addHandler(handler)
    monkeypatch.setattr(sys, "stdout", out)
    try:
        act()
    except Exception as e:
        logger.error("ServerApp raised an exception", exc_info=e)
    finally:
        monkeypatch.undo()
        logger.removeHandler(handler)
    return out.getvalue()


def heard(text: str, folder: Path) -> tuple[Listener, Watch]:
    watch = Watch()
    listener = Listener(watch, Incoming(folder))
    for line in io.StringIO(text, newline=None):  # as a pipe is read
        listener.hear(line)
    listener.incoming.close()
    return listener, watch


def test_a_clients_error_becomes_no_event(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A client's words stay words: an error that quotes it is one line of the log, however it is
    written, and the submitter hears one error, in one line, and no file, note or end of others'."""
    cause = RuntimeError(EVIL)
    cause.add_note(EVIL)

    def fails(*_: object) -> None:
        raise MethodError(f"client films: {EVIL}") from cause

    monkeypatch.setattr(serverapp, "_resolved", fails)
    patch = pytest.MonkeyPatch()
    flat = {"submit.run": "far", "run.rounds": 1}
    context = Context(1, 0, {}, RecordDict(), flat)  # type: ignore[arg-type]
    text = log(patch, lambda: serverapp.main(None, context))  # type: ignore[arg-type]
    assert "MethodError: " not in text and "in fails" in text  # the place stays, for who mends it
    assert all(line.isprintable() for line in text.replace("\x1b[91m", "").splitlines()[:3])
    own = [line for line in text.splitlines() if line.startswith((OPENING, PREFIX))]
    assert len(own) == 3 and own[0] != LINES[0]  # the opening, the error, the end
    listener, watch = heard(text, tmp_path)
    assert listener.complete and listener.incoming.expected is None and not watch.notes
    assert listener.error and listener.error.startswith("client films: no rows ")
    assert listener.error.isprintable() and not list(tmp_path.iterdir())


def test_what_is_printed_as_it_came_becomes_no_event(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whatever else prints what a client said, in the middle of a line too, is no event: that takes
    the token, which no node is told. The run's own events are heard all the same."""

    def act() -> None:
        told = Events()
        print(EVIL, end="")  # a library's warning, say, that ends in no newline
        told.note("the run's own")
        print(EVIL)
        told.end()

    listener, watch = heard(log(monkeypatch, act), tmp_path)
    assert listener.complete and watch.notes == ["the run's own"]
    assert listener.error is None and listener.incoming.expected is None
    assert listener.tail and all(line.isprintable() for line in listener.tail)


def test_a_nodes_reason_is_one_line() -> None:
    """What a node gives as a reason, in whichever of the ways it can, arrives as one line."""
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    ways: list[Callable[[Message], Message]] = [
        lambda m: Message(Error(200, EVIL), reply_to=m),
        lambda m: Message(wire.pack(Parcel({"status": "error", "reason": EVIL})), reply_to=m),
    ]
    for way in ways:
        exchange = Exchange(Grid(reply=way), 10)  # type: ignore[arg-type]
        exchange.push([message(Parcel({}), 7, "train", "1", 10)])
        (answer,) = exchange.answers()
        said = answer.reason or (answer.parcel and answer.parcel.facts["reason"])
        assert isinstance(said, str) and said.startswith("no rows ") and said.isprintable()


# What is heard with the run's own token: a server that nobody has to trust with their disk.

TOKEN = "0123456789abcdef" * 2
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
NAMES = ["rounds", "start", "round", "name", "clients", "phase", "client", "loss", "reason"]
NAMES += ["row", "text", "files", "left", "path", "part", "data"]
KINDS = ["begin", "phase", "client", "round", "note", "error", "files", "file", "end", "log", "x"]
FIELDS = st.dictionaries(st.sampled_from(NAMES), JSON, max_size=4)


def said(n: int, kind: str, **fields: Any) -> str:
    return f"{PREFIX} {TOKEN} {json.dumps({'n': n, 'kind': kind, **fields})}\n"


def listening(folder: Path, observer: Observer) -> Listener:
    listener = Listener(observer, Incoming(folder))
    listener.hear(f"{OPENING} {TOKEN}\n")
    return listener


@given(n=JSON, kind=st.sampled_from(KINDS) | JSON, fields=FIELDS, row=FIELDS)
def test_an_event_of_other_fields_is_not_heard(
    tmp_path_factory: pytest.TempPathFactory, n: Any, kind: Any, fields: Any, row: Any
) -> None:
    """Whatever an event says, it ends nobody's `fedlora submit`: what has not its kind's fields, of
    their types, is passed over."""
    with Progress(1, Console(file=io.StringIO()), None) as observer:
        listener = listening(tmp_path_factory.getbasetemp() / "none", observer)
        for extra in (fields, {**fields, "row": row}, {"row": {"round": 1, **row}}):
            line = json.dumps({"n": n, "kind": kind, **extra})
            listener.hear(f"{PREFIX} {TOKEN} {line}\n")
        listener.hear(f"{PREFIX} {TOKEN} {'[' * 100_000}\n")
    assert not (tmp_path_factory.getbasetemp() / "none").exists()


@pytest.mark.parametrize(
    "fields",
    [
        {"round": 1, "phase": "train", "client": "a", "loss": 10**400, "reason": None},
        {"round": 1, "phase": "train", "client": "a", "loss": "1", "reason": None},
        {"round": 1, "phase": "train", "client": "a", "loss": 1.0, "reason": None, "self": 1},
        {"round": 1, "phase": "train", "client": None, "loss": 1.0, "reason": None},
    ],
)
def test_a_field_of_another_type_is_not_shown(fields: dict[str, Any], tmp_path: Path) -> None:
    """Each of these once ended the submitter, or would."""
    told: list[object] = []

    class Told(Observer):
        def client(self, *given: object, **named: object) -> None:
            told.append(named)

    listener = listening(tmp_path, Told())
    listener.hear(said(1, "client", **fields))
    assert not told
    listener.hear(said(1, "client", **{**fields, "client": "a", "loss": 1.0} | {"phase": "x"}))
    assert bool(told) == ("self" not in fields)
