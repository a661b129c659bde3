"""The ClientApp of a deployment: hands each message to the node's resident trainer.

Flower starts a process for every message, so this one loads neither torch nor a model. It starts
the trainer where none answers, and once more where it dies over the message: a round that is done
again from the same order ends in the same bits and is paid for once.
"""

import fcntl
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from grpc_health.v1 import health_pb2, health_pb2_grpc

from clients.channel import FAILED, METHOD, OPTIONS, SERVICE, Place, state_dir
from clients.frames import cut, whole

START = 60.0  # seconds that a trainer may take until it answers
CHECK = 2.0  # seconds for a health check
PAUSE = 0.05  # seconds between looks at a trainer that is starting

app = ClientApp()


class TrainerError(Exception):
    """The trainer gives no answer."""


def forward(message: Message, context: Context) -> Message:
    """The trainer's reply to a message. Raises TrainerError, whose words Flower sends to the server
    and are always the same; why is in this process's log."""
    try:
        return answered(message, context)
    except Exception:
        traceback.print_exc()
        raise TrainerError(FAILED) from None


def answered(message: Message, context: Context) -> Message:
    """The trainer's reply. Raises TrainerError that says why there is none."""
    place = Place(state_dir(context.node_config))
    until = message.metadata.created_at + message.metadata.ttl
    facts = {
        "run_id": context.run_id,
        "node_id": context.node_id,
        "node_config": context.node_config,
        "run_config": context.run_config,
    }
    for attempt in (1, 2):
        start(place)
        try:
            return ask(place, cut(facts, [message]), until - time.time())
        except grpc.RpcError as e:
            if e.code() == grpc.StatusCode.UNAVAILABLE and attempt == 1:
                print("the trainer ended over this message: starting another", file=sys.stderr)
                continue
            raise TrainerError(f"the node's trainer: {e.code().name}: {e.details()}") from None
    raise AssertionError("unreachable")


def ask(place: Place, pieces: Iterator[bytes], seconds: float) -> Message:
    """One call, with its deadline. Raises grpc.RpcError."""
    with grpc.insecure_channel(place.address, OPTIONS) as channel:
        call = channel.stream_stream(f"/{SERVICE}/{METHOD}")
        metadata = [("authorization", f"Bearer {place.token.read_text()}")]
        _, (reply,), _ = whole(call(pieces, timeout=max(seconds, 0.0), metadata=metadata))
        return reply


def start(place: Place) -> None:
    """Make sure that a trainer answers. Raises TrainerError where none does in time."""
    place.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if healthy(place):
        return
    with _locked(place.lock):  # the next message's process may be starting one
        if healthy(place):
            return
        # -P: what lies in the working directory is nobody's code.
        command = [sys.executable, "-P", "-m", "clients.trainer", str(place.folder.parent)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
        until = time.monotonic() + START
        while not healthy(place):
            if process.poll() is not None:
                raise TrainerError(f"the node's trainer ended with exit code {process.returncode}")
            if time.monotonic() > until:
                process.kill()
                raise TrainerError(f"the node's trainer did not answer within {START:g} s")
            time.sleep(PAUSE)


def healthy(place: Place) -> bool:
    """Whether a trainer answers there."""
    if not (place.socket.exists() and place.token.exists()):
        return False
    with grpc.insecure_channel(place.address, OPTIONS) as channel:
        try:
            asked = health_pb2.HealthCheckRequest(service=SERVICE)
            found = health_pb2_grpc.HealthStub(channel).Check(asked, timeout=CHECK)
        except grpc.RpcError:
            return False
        return bool(found.status == health_pb2.HealthCheckResponse.SERVING)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # its holder gives up after START seconds
        yield


for register in (app.query(), app.query("gradients"), app.train(), app.evaluate()):
    register(forward)
