"""A worker process: the deployment's ClientApp, called in a loop."""

import json
import logging
import os
import signal
import threading
from multiprocessing.connection import Connection
from typing import Any


def serve(pipe: Connection, threads: int) -> None:
    """Answer messages until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides; it closes the pipe
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import torch
    from tqdm import tqdm

    # Else tqdm, on import of datasets, makes semaphores that are "leaked" when a worker is ended.
    tqdm.set_lock(threading.RLock())
    from flwr.common.serde import message_from_proto, message_to_proto
    from flwr.proto.message_pb2 import Message as Proto
    from flwr.supercore.task_identity import TaskIdentity

    torch.set_num_threads(threads)
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    try:
        while True:
            context = json.loads(pipe.recv_bytes())
            message = message_from_proto(Proto.FromString(pipe.recv_bytes()))
            pipe.send_bytes(message_to_proto(answer(message, context)).SerializeToString())
    except (EOFError, OSError):
        return


def answer(message: Any, context: dict[str, Any]) -> Any:
    """The ClientApp's reply; what it raises becomes an error message, as Flower does it."""
    from flwr.app import Context, Error, Message, RecordDict

    from clients.app import app

    try:
        return app(message, Context(state=RecordDict(), **context))
    except Exception as e:
        return Message(Error(2, f"{type(e).__name__}: {e}"), reply_to=message)
