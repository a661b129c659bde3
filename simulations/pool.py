"""Long-lived worker processes, each with one resident base, that answer Flower's messages.

A worker reads the messages of a job and their contexts as bytes from a pipe and writes replies
back: JSON and protobuf, nothing pickled. A worker that dies is replaced. Messages that shared its
passes are given to the next together, once, since each alone would end in other last bits; then,
or where there was one, they are answered with an error. When the parent goes away the pipe closes
and the worker ends.
"""

import json
import multiprocessing
import threading
import time
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from queue import SimpleQueue
from typing import Any, NamedTuple

from flwr.app import Error, Message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as Proto
from flwr.supercore.task_identity import TaskIdentity

from simulations.worker import serve

CRASHED = 8  # Flower's code for a client process that ended


class Job(NamedTuple):
    """Messages for clients that may share passes, each with the JSON-able context it is handled in,
    and where to put the replies."""

    messages: list[Message]
    contexts: list[dict[str, Any]]
    replies: "SimpleQueue[Message]"

    @property
    def expired(self) -> bool:
        """Whether their time to live is over, so that nobody waits for the answers."""
        about = [m.metadata for m in self.messages]
        return time.time() > max(x.created_at + x.ttl for x in about)


class Pool:
    """Worker processes behind one queue of jobs. Use as a context manager."""

    def __init__(self, workers: int, threads: int) -> None:
        self.workers, self.threads = workers, threads
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._processes: dict[str, SpawnProcess] = {}
        self._closed = False
        self._keepers = [
            threading.Thread(target=self._keep, daemon=True, name=f"worker-{i}")
            for i in range(workers)
        ]

    def __enter__(self) -> "Pool":
        # Outside a Flower run a Message can only be made once these are set.
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
        for keeper in self._keepers:
            keeper.start()
        return self

    def __exit__(self, *_: object) -> None:
        """What is still being worked on is wanted by nobody any more, and is cut short."""
        self._closed = True
        for process in list(self._processes.values()):
            process.terminate()
        for _keeper in self._keepers:
            self._jobs.put(None)
        for keeper in self._keepers:
            keeper.join()

    def submit(self, job: Job) -> None:
        self._jobs.put(job)

    def _keep(self) -> None:
        """One thread a worker: hand it jobs, one at a time; start another where it died."""
        process, pipe = self._start()
        while (job := self._jobs.get()) is not None and not self._closed:
            if job.expired:
                continue
            attempts = 1 if len(job.messages) == 1 else 2
            replies = None
            while replies is None and attempts:
                attempts -= 1
                try:
                    replies = _asked(pipe, job)
                except (EOFError, OSError):
                    process.join()
                    if self._closed:
                        return
                    reason = f"its worker process ended with exit code {process.exitcode}"
                    process, pipe = self._start()
            if replies is None:
                replies = [Message(Error(CRASHED, reason), reply_to=m) for m in job.messages]
            for reply in replies:
                job.replies.put(reply)
        pipe.close()
        process.join()

    def _start(self) -> tuple[SpawnProcess, Connection]:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs, self.threads), daemon=True)
        process.start()
        theirs.close()
        self._processes[threading.current_thread().name] = process
        return process, ours


def _asked(pipe: Connection, job: Job) -> list[Message]:
    """A worker's replies to a job. Raises EOFError or OSError where it ends instead."""
    pipe.send_bytes(json.dumps(job.contexts).encode())
    for message in job.messages:
        pipe.send_bytes(message_to_proto(message).SerializeToString())
    return [message_from_proto(Proto.FromString(pipe.recv_bytes())) for _ in job.messages]
