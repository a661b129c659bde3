"""The resident trainer: the node's process that holds the base model and the tokenised rows.

`python -m clients.trainer STATE_DIR` answers `clients.proxy` until nothing has come for the owner's
`idle` seconds. It is up before torch is, which the first message loads. One message at a time; a
caller that is gone, or past its deadline, is no longer worked for.
"""

import fcntl
import hmac
import logging
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from flwr.app import Context, Message, RecordDict
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from clients.channel import FAILED, METHOD, OPTIONS, SERVICE, Place
from clients.frames import cut, whole
from fedlora import cancel, files, quantised
from fedlora.untrusted import Log

IDLE = 600.0  # seconds before the first message; then the owner's own
CALLS = 8  # threads: one works, the others wait, refuse or tell that the process is well
LOOK = 0.5  # seconds between looks at the clock

log = logging.getLogger("fedlora.trainer")


class Trainer:
    """Answers calls with what the ClientApp of a simulation would."""

    def __init__(self, token: str) -> None:
        self._token = token
        self._turn = threading.Lock()
        self._open: set[int] = set()  # the threads of calls that are open
        self._last = time.monotonic()
        self.idle = IDLE

    @property
    def unused(self) -> float:
        """Seconds since the last call ended; 0 while one is open."""
        return 0.0 if self._open else time.monotonic() - self._last

    def answer(self, call: Iterator[bytes], rpc: grpc.ServicerContext) -> Iterator[bytes]:
        """One call of `channel.METHOD`. No generator, since gRPC may move those between threads."""
        shown = dict(rpc.invocation_metadata()).get("authorization", "")
        if not hmac.compare_digest(str(shown), f"Bearer {self._token}"):
            log.warning("a caller without the token was refused")
            rpc.abort(grpc.StatusCode.UNAUTHENTICATED, "the token is missing or wrong")
        gone = threading.Event()
        self._open.add(threading.get_ident())
        try:
            if not rpc.add_callback(gone.set):
                return iter(())
            context, (message,), size = whole(call)
            with self._turn, cancel.when(gone.is_set):
                return cut(None, [self._handled(context, message, size)])
        except cancel.Cancelled:
            log.warning("the caller is gone: its message is worked on no further")
            return iter(())
        except Exception:  # gRPC would send its words
            log.exception("a message could not be answered")
            rpc.abort(grpc.StatusCode.INTERNAL, FAILED)
            raise
        finally:
            self._open.discard(threading.get_ident())
            self._last = time.monotonic()

    def _handled(self, facts: dict[str, Any], message: Message, size: int) -> Message:
        cancel.check()
        context = Context(state=RecordDict(), **facts)
        reply, self.idle = handle(message, context, size)
        return reply


def handle(message: Message, context: Context, size: int) -> tuple[Message, float]:
    """The reply to a message of `size` bytes, whatever happens over it, and the owner's idle time.
    What its owner does not allow is refused before anything is loaded for it."""
    # Here and below: torch and all, loaded by the first message.
    from clients.excuse import excuse
    from clients.owner import Owner
    from fedlora import wire

    idle = IDLE
    try:
        owner = Owner.read(context.node_config)
        idle = owner.idle
        owner.allow(context.run_config, size)
        return _served(message, context, owner.threads), idle
    except Exception as e:
        return Message(wire.pack(excuse(e, context)), reply_to=message), idle


def _served(message: Message, context: Context, threads: int) -> Message:
    import torch

    from clients import app

    if threads:
        torch.set_num_threads(threads)
    try:
        return app.app(message, context)
    except cancel.Cancelled:
        app.forget()  # half a step is in the model
        raise


def serve(state_dir: Path) -> None:
    """Listen until unused, or told to end."""
    os.umask(0o077)
    place = Place(state_dir)
    place.folder.mkdir(parents=True, exist_ok=True)
    alive = place.alive.open("w")
    fcntl.flock(alive, fcntl.LOCK_EX)  # one that is ending holds it for a moment longer
    token = secrets.token_hex(32)
    files.write(place.token, token, mode=0o600)
    place.socket.unlink(missing_ok=True)

    trainer = Trainer(token)
    server = grpc.server(ThreadPoolExecutor(CALLS), options=OPTIONS)
    handler = grpc.stream_stream_rpc_method_handler(trainer.answer)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),)
    )
    well = health.HealthServicer()
    well.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(well, server)
    server.add_insecure_port(place.address)
    place.socket.chmod(0o600)
    told = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: told.set())
    server.start()
    while not told.wait(LOOK) and trainer.unused < trainer.idle:
        pass
    log.info("the trainer ends")
    server.stop(grace=None).wait()


if __name__ == "__main__":
    quantised.late()
    logging.basicConfig(level=logging.INFO, handlers=[Log("%(name)s: %(message)s")])
    serve(Path(sys.argv[1]))
