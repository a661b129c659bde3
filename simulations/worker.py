"""A worker process: the deployment's ClientApp, called in a loop."""

import json
import logging
import os
import signal
import threading
from collections.abc import Sequence
from itertools import chain
from multiprocessing.connection import Connection
from typing import Any

from fedlora import profile, quantised
from fedlora.untrusted import Log


def serve(pipe: Connection, threads: int, profiled: bool, card: str | None) -> None:
    """Answer messages until the pipe closes.

    Args:
        profiled: whether a job's replies are followed by the seconds since those before, by span.
        card: the one GPU that this process is to see.
    """
    if card is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = card  # before CUDA is asked anything
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides; it closes the pipe
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    quantised.late()
    import torch
    from tqdm import tqdm

    # Else tqdm, on import of datasets, makes semaphores that are "leaked" when a worker is ended.
    tqdm.set_lock(threading.RLock())
    from flwr.supercore.task_identity import TaskIdentity

    from clients.frames import cut, whole

    torch.set_num_threads(threads)
    logging.basicConfig(level=logging.WARNING, handlers=[Log("%(name)s: %(message)s")])
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # of kernels that it does without
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    recorder = profile.Recorder() if profiled else None
    try:
        with profile.recording(recorder):
            while True:
                with profile.span("wait"):
                    first = pipe.recv_bytes()
                with profile.span("encode"):
                    about, messages, _ = whole(chain([first], iter(pipe.recv_bytes, None)))
                chored = isinstance(about, dict)
                told = chore(about) if chored else None
                replies = [] if chored else answers(messages, about)
                with profile.span("encode"):
                    for piece in cut(told, replies):
                        pipe.send_bytes(piece)
                if recorder:
                    pipe.send_bytes(json.dumps(recorder.taken()).encode())
    except (EOFError, OSError):
        return


def chore(asks: dict[str, Any]) -> dict[str, Any]:
    """What came of something that the server asked for, or why nothing did."""
    from flwr.app import Context, RecordDict

    with profile.span("load"):
        from clients.app import resident
        from simulations.shares import done

    try:
        return done(resident(Context(state=RecordDict(), **asks["context"])), asks)
    except Exception as e:
        return {"error": f"{type(e).__name__}: {e}"}


def answers(messages: Sequence[Any], contexts: Sequence[dict[str, Any]]) -> list[Any]:
    """The ClientApp's replies; orders that came together share passes through the model."""
    from flwr.app import Context, RecordDict

    with profile.span("load"):
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
