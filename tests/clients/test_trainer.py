"""The resident trainer, as a process of its own: one a node, for its owner alone, replaced when it
ends, and working for nobody who has gone."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import grpc
import psutil
import pytest
from flwr.app import Context, Message, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.supercore.task_identity import TaskIdentity

import strategies
from clients import app, proxy
from clients.channel import Place
from clients.frames import cut
from fedlora import settings, wire
from fedlora.orders import Order
from fedlora.views import fingerprint, manifest
from fedlora.wire import Parcel

ENDS = 60.0  # seconds until a test gives up waiting


@pytest.fixture(scope="module")
def rows(world, tmp_path_factory):
    """One owner's file."""
    lines = [x for x in world.data.read_text().splitlines() if json.loads(x)["domain"] == "books"]
    path = tmp_path_factory.mktemp("books") / "rows.jsonl"
    path.write_text("\n".join(lines))
    return path


@contextmanager
def made(world, rows, state):
    """A node's context; its trainer is ended afterwards."""
    owner = {"client": "books", "data": str(rows), "model": str(world.model), "threads": 1}
    run = {"strategy.name": "fedit", "train.steps": 100_000, "privacy.noise_multiplier": 1.0}
    tree = world.tree(state, run)
    context = Context(
        run_id=1,
        node_id=7,
        node_config={**owner, "max-steps": 10**6, "state-dir": str(state)},
        state=RecordDict(),
        run_config=settings.to_flat(settings.resolve(tree, strategies.load)[0]),
    )
    yield context
    for process in trainers(context):
        process.kill()
        process.wait(ENDS)


@pytest.fixture(scope="module")
def node(world, rows, tmp_path_factory):
    """For tests that leave its trainer as it was."""
    with made(world, rows, tmp_path_factory.mktemp("node")) as context:
        yield context


@pytest.fixture
def own(world, rows, tmp_path):
    """For tests that end its trainer."""
    with made(world, rows, tmp_path) as context:
        yield context


def trainers(context):
    """The processes of this node's trainer."""
    tail = ["clients.trainer", str(Place(state(context)).folder.parent)]
    return [p for p in psutil.process_iter(["cmdline"]) if (p.info["cmdline"] or [])[-2:] == tail]


def state(context):
    return Path(context.node_config["state-dir"])


def sent(content=None, kind="query", ttl=ENDS):
    """A message as it comes from Flower."""
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    proto = message_to_proto(Message(wire.pack(content or Parcel()), 7, kind, ttl=ttl))
    proto.metadata.message_id = "m"
    return message_from_proto(proto)


def until(condition):
    """Poll; fails after a minute."""
    end = time.monotonic() + ENDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def facts(reply):
    assert not reply.has_error()
    return wire.unpack(reply.content).facts


def endless(context):
    """An order for a round that takes minutes."""
    hello = facts(proxy.forward(sent(), context))
    assert hello["status"] == "ok", hello
    view = app.resident(context).adapter.initial()
    order = Order(
        experiment="e",
        round=1,
        purpose="train",
        client="books",
        rank=4,
        scale=2.0,
        examples=hello["examples"],
        tag="0001-0",
        basis="",
        fingerprint=fingerprint(manifest(view)),
        own=0,
        drop=[],
        tails=[],
        planned=1,
        spent=[],
    )
    return Parcel(order.facts(), view)


def training(context):
    """Whether a round has begun: what its steps spend is on the node's disk by then."""
    return (state(context) / "run-e/client-books/privacy.json").exists()


def test_the_process_for_one_message_loads_no_torch():
    """Nor anything that costs seconds: only what passes a message on."""
    heavy = {"torch", "transformers", "peft", "datasets", "opacus", "pandas", "ray"}
    code = f"import clients.proxy, sys; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_it_answers_as_the_app_of_a_simulation_does(node):
    """The same facts, and the message's own address on the reply."""
    message = sent()
    reply = proxy.forward(message, node)
    assert facts(reply) == facts(app.app(message, node))
    assert facts(reply)["client"] == "books"
    about = reply.metadata
    assert (about.reply_to_message_id, about.src_node_id, about.dst_node_id) == ("m", 7, 1)


def test_one_process_serves_every_message(node):
    """Also when several messages find none there and would each start one."""
    threads = [threading.Thread(target=proxy.forward, args=(sent(), node)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(ENDS)
    (first,) = trainers(node)
    proxy.forward(sent(), node)
    assert [p.pid for p in trainers(node)] == [first.pid]


def test_its_files_are_for_its_owner_alone(node):
    """Socket and token 0600, in a folder that nobody else may enter."""
    proxy.forward(sent(), node)
    place = Place(state(node))
    modes = [path.stat().st_mode & 0o777 for path in (place.folder, place.socket, place.token)]
    assert modes == [0o700, 0o600, 0o600]


def test_who_lacks_the_token_is_refused(node):
    """Nobody's message is looked at without it."""
    proxy.forward(sent(), node)
    place = Place(state(node))
    token = place.token.read_text()
    for wrong in ("", token[:-1] + "x"):
        place.token.write_text(wrong)
        with pytest.raises(grpc.RpcError) as refused:
            proxy.ask(place, cut({}, []), ENDS)
        assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
    place.token.write_text(token)


def test_what_the_owner_does_not_allow_is_refused_in_words(node):
    """Before anything is loaded for it; the trainer goes on."""
    asking = Context(1, 7, {**node.node_config, "max-rounds": 1}, RecordDict(), node.run_config)
    found = facts(proxy.forward(sent(), asking))
    assert found["status"] == "error" and "max-rounds" in found["reason"]
    assert facts(proxy.forward(sent(), node))["status"] == "ok"


def test_one_that_dies_over_a_message_is_replaced(own):
    """The message is asked again of the next process; one that dies over it too is an error, and
    not a loop."""
    parcel, said = endless(own), []

    def ask():
        try:
            proxy.forward(sent(parcel, "train", ttl=600.0), own)
        except proxy.TrainerError as e:
            said.append(str(e))

    (first,) = trainers(own)
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    until(lambda: training(own))
    first.kill()
    until(lambda: [p for p in trainers(own) if p.pid != first.pid])
    assert not said
    (second,) = [p for p in trainers(own) if p.pid != first.pid]
    until(Place(state(own)).socket.exists)
    second.kill()
    asking.join(ENDS)
    assert len(said) == 1


def test_who_is_gone_is_worked_for_no_longer(node):
    """At the message's deadline the round stops, and the next message is answered at once."""
    parcel = endless(node)
    with pytest.raises(proxy.TrainerError, match="DEADLINE_EXCEEDED"):
        proxy.answered(sent(parcel, "train", ttl=5.0), node)
    assert training(node)
    assert facts(proxy.forward(sent(), node))["status"] == "ok"


def test_it_ends_when_nobody_asks(own):
    """After the owner's idle time; the next message finds another."""
    brief = Context(1, 7, {**own.node_config, "idle": 0.2}, RecordDict(), own.run_config)
    proxy.forward(sent(), brief)
    until(lambda: not trainers(own))
    assert facts(proxy.forward(sent(), brief))["status"] == "ok"


def test_it_ends_when_told(own):
    """By the signal of service managers, within a moment."""
    proxy.forward(sent(), own)
    (process,) = trainers(own)
    os.kill(process.pid, signal.SIGTERM)
    until(lambda: not trainers(own))


def test_a_state_directory_that_is_too_deep_is_said_so(tmp_path):
    """A Unix socket's path has 107 bytes at most."""
    with pytest.raises(ValueError, match="shorter state-dir"):
        _ = Place(tmp_path / ("x" * 100)).address
