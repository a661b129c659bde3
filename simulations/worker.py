"""A worker process: the deployment's ClientApp, called in a loop."""

import json
import logging
import os
import signal
import threading
from collections.abc import Sequence
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
            contexts = json.loads(pipe.recv_bytes())
            messages = [message_from_proto(Proto.FromString(pipe.recv_bytes())) for _ in contexts]
            for reply in answers(messages, contexts):
                pipe.send_bytes(message_to_proto(reply).SerializeToString())
    except (EOFError, OSError):
        return


def answers(messages: Sequence[Any], contexts: Sequence[dict[str, Any]]) -> list[Any]:
    """The ClientApp's replies; orders that came together share passes through the model."""
    from flwr.app import Context, RecordDict

    from clients.app import together

    asked = [
        (message, Context(state=RecordDict(), **context))
        for message, context in zip(messages, contexts, strict=True)
    ]
    if len(asked) > 1 and messages[0].metadata.message_type in ("train", "evaluate"):
        return together(asked)
    return [_answer(message, context) for message, context in asked]


def _answer(message: Any, context: Any) -> Any:
    """One reply; what the app raises becomes an error message, as Flower does it."""
    from flwr.app import Error, Message

    from clients.app import app

    try:
        return app(message, context)
    except Exception as e:
        return Message(Error(2, f"{type(e).__name__}: {e}"), reply_to=message)
