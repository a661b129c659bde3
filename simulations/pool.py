"""Long-lived worker processes, each with one resident base, that answer Flower's messages.

A worker reads the messages of a job and their contexts from a pipe, in pieces of bytes
(`clients.frames`), and writes replies back; nothing is pickled. A worker that dies is replaced.
Messages that shared its passes are given to the next together, once, since each alone would end in
other last bits; then, or where there was one, they are answered with an error. When the parent goes
away the pipe closes and the worker ends.
"""

import json
import threading
import time
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess, SpawnProcess
from queue import SimpleQueue
from typing import Any, NamedTuple

from flwr.app import Error, Message
from flwr.supercore.task_identity import TaskIdentity

from clients.frames import cut, whole
from fedlora import profile
from fedlora.profile import Profile, Seconds
from simulations import nursery
from simulations.worker import serve

CRASHED = 8  # Flower's code for a client process that ended


class Job(NamedTuple):
    """Messages for clients that may share passes, each with the JSON-able context it is handled in,
    where to put the replies, until when somebody waits for them, and their round."""

    messages: list[Message]
    contexts: list[dict[str, Any]]
    replies: "SimpleQueue[Message]"
    until: float  # as time.time() has it
    round: str

    @property
    def expired(self) -> bool:
        """Whether nobody waits for the answers any more."""
        return time.time() > self.until


class Pool:
    """Worker processes behind one queue of jobs. Use as a context manager.

    Args:
        device: where workers have their models, as torch names it.
    """

    def __init__(self, workers: int, threads: int, device: str = "cpu") -> None:
        self.workers, self.threads, self.device = workers, threads, device
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._processes: dict[str, ForkServerProcess | SpawnProcess] = {}
        self._closed = False
        self._profile = profile.current()
        self._keepers = [
            threading.Thread(target=self._keep, daemon=True, name=f"worker-{i}")
            for i in range(workers)
        ]

    def __enter__(self) -> "Pool":
        # Outside a Flower run a Message can only be made once these are set.
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
        if self.workers and self.device == "cpu":
            nursery.warm()
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
        since = time.perf_counter()
        while (job := self._jobs.get()) is not None and not self._closed:
            if job.expired:
                continue
            attempts = 1 if len(job.messages) == 1 else 2
            replies = None
            while replies is None and attempts:
                attempts -= 1
                try:
                    replies = _asked(pipe, job)
                    if isinstance(self._profile, Profile):
                        since = self._profiled(job.round, json.loads(pipe.recv_bytes()), since)
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

    def _profiled(self, round: str, seconds: Seconds, since: float) -> float:
        """Put down what a worker did since then; what it cannot know of, it took to start."""
        now, name = time.perf_counter(), threading.current_thread().name
        assert isinstance(self._profile, Profile)
        rest = max(0.0, now - since - sum(seconds.values()))
        kind = "wait" if name in self._profile.rounds else "load"
        self._profile.add(name, round, {kind: rest})
        self._profile.add(name, round, seconds)
        return now

    def _start(self) -> tuple[ForkServerProcess | SpawnProcess, Connection]:
        context: Any = nursery.context(self.device)
        ours, theirs = context.Pipe()
        arguments = (theirs, self.threads, self._profile is not None)
        process = context.Process(target=serve, args=arguments, daemon=True)
        process.start()
        theirs.close()
        self._processes[threading.current_thread().name] = process
        return process, ours


def _asked(pipe: Connection, job: Job) -> list[Message]:
    """A worker's replies to a job. Raises EOFError or OSError where it ends instead."""
    for piece in cut(job.contexts, job.messages):
        pipe.send_bytes(piece)
    return whole(iter(pipe.recv_bytes, None))[1]
