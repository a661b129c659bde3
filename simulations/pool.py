"""Long-lived worker processes, each with one resident base, that answer Flower's messages.

A worker reads the messages of a job and their contexts from a pipe, in pieces of bytes
(`clients.frames`), and writes replies back; nothing is pickled. A worker that dies is replaced.
Messages that shared its passes are given to the next together, once, since each alone would end in
other last bits; then, or where there was one, they are answered with an error. What is the server's
own to do, a `Chore`, waits until there is no job. When the parent goes away the pipe closes and the
worker ends.
"""

import json
import threading
import time
from collections.abc import Sequence
from itertools import count
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess, SpawnProcess
from queue import PriorityQueue, SimpleQueue
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
    def attempts(self) -> int:
        return 1 if len(self.messages) == 1 else 2

    @property
    def expired(self) -> bool:
        """Whether nobody waits for the answers any more."""
        return time.time() > self.until

    @property
    def asks(self) -> tuple[Any, list[Message]]:
        return self.contexts, self.messages

    def done(self, found: tuple[Any, list[Message]]) -> None:
        for reply in found[1]:
            self.replies.put(reply)

    def failed(self, reason: str) -> None:
        for message in self.messages:
            self.replies.put(Message(Error(CRASHED, reason), reply_to=message))


class Chore(NamedTuple):
    """Something that any worker can do for the server, see `simulations.shares`: its number and
    what it says, as JSON has it, and where to put both the number and what came of it."""

    number: int
    what: dict[str, Any]
    replies: "SimpleQueue[tuple[int, dict[str, Any]]]"

    @property
    def attempts(self) -> int:
        return 2

    @property
    def expired(self) -> bool:
        return False

    @property
    def round(self) -> str:
        return str(self.what["round"])

    @property
    def asks(self) -> tuple[Any, list[Message]]:
        return self.what, []

    def done(self, found: tuple[Any, list[Message]]) -> None:
        self.replies.put((self.number, found[0]))

    def failed(self, reason: str) -> None:
        self.replies.put((self.number, {"error": reason}))


class Pool:
    """Worker processes behind one queue of jobs. Use as a context manager.

    Args:
        device: where workers have their models, as torch names it.
        cards: the GPUs that workers see, one each and in turn, as CUDA_VISIBLE_DEVICES has them.
    """

    def __init__(
        self, workers: int, threads: int, device: str = "cpu", cards: Sequence[str] = ()
    ) -> None:
        self.workers, self.threads, self.device, self.cards = workers, threads, device, cards
        self._jobs: PriorityQueue[tuple[int, int, Job | Chore | None]] = PriorityQueue()
        self._count = count()  # those that are alike come out as they went in
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
            self._put(0, None)
        for keeper in self._keepers:
            keeper.join()

    def submit(self, job: Job | Chore) -> None:
        self._put(2 if isinstance(job, Chore) else 1, job)

    def _put(self, rank: int, job: Job | Chore | None) -> None:
        self._jobs.put((rank, next(self._count), job))

    def _keep(self) -> None:
        """One thread a worker: hand it jobs, one at a time; start another where it died."""
        process, pipe = self._start()
        since = time.perf_counter()
        while (job := self._jobs.get()[2]) is not None and not self._closed:
            attempts = 0 if job.expired else job.attempts
            while attempts:
                try:
                    found = _asked(pipe, *job.asks)
                    if isinstance(self._profile, Profile):
                        since = self._profiled(job.round, json.loads(pipe.recv_bytes()), since)
                    job.done(found)
                    break
                except (EOFError, OSError):
                    process.join()
                    if self._closed:
                        return
                    reason = f"its worker process ended with exit code {process.exitcode}"
                    process, pipe = self._start()
                    attempts -= 1
                    if not attempts:
                        job.failed(reason)
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
        number = int(threading.current_thread().name.rpartition("-")[2])
        card = self.cards[number % len(self.cards)] if self.cards else None
        arguments = (theirs, self.threads, self._profile is not None, card)
        process = context.Process(target=serve, args=arguments, daemon=True)
        process.start()
        theirs.close()
        self._processes[threading.current_thread().name] = process
        return process, ours


def _asked(pipe: Connection, about: Any, messages: list[Message]) -> tuple[Any, list[Message]]:
    """What a worker says. Raises EOFError or OSError where it ends instead."""
    for piece in cut(about, messages):
        pipe.send_bytes(piece)
    return whole(iter(pipe.recv_bytes, None))[:2]
