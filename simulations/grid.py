"""A Grid in process: Flower's messages to worker processes, with no SuperLink between."""

import math
import time
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from clients.frames import cut, whole
from fedlora import profile
from fedlora.config import Config
from fedlora.settings import to_flat
from simulations.pool import Job, Pool
from simulations.worker import answers

WAIT = 0.05  # seconds that a pull waits for the next reply


class InProcessGrid(Grid):
    """Nodes 1..n, one a client of the data; all are there from the start (`closed`).

    Messages that are pushed in one call go to one worker, and their clients share its passes.
    With a pool of no workers, clients are served in this process when their replies are pulled.

    Attributes:
        share: how many messages to push in one call.
        window: how many may be under way: each worker has a job, and two more wait.
    """

    closed = True
    waits = True

    def __init__(self, config: Config, clients: int, state_dir: Path, pool: Pool) -> None:
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
        self._pool, self._clients = pool, clients
        self._run_config = to_flat(config)
        if pool.cards:
            self._run_config["simulation.device"] = "cuda"  # each worker sees one GPU alone
        self._state_dir = str(state_dir.resolve())
        self._numbers = count(1)
        self._replies: SimpleQueue[Message] = SimpleQueue()
        self._inline: list[Job] = []
        self._run = Run.create_empty(1)
        self.share = config.simulation.copies or 1
        self.window = self.share * (pool.workers + 2)

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return self._run

    def get_node_ids(self) -> Iterable[int]:
        return range(1, self._clients + 1)

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        batch = list(messages)
        for message in batch:
            message.metadata.__dict__["_message_id"] = f"message-{next(self._numbers)}"
        about = [message.metadata for message in batch]
        if batch:
            contexts = [self.context(one.dst_node_id) for one in about]
            until = max(one.created_at + one.ttl for one in about)
            job = Job(batch, contexts, self._replies, until, about[-1].group_id)
            if self._pool.workers:
                self._pool.submit(job)
            else:
                self._inline.append(job)
        return [one.message_id for one in about]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Replies that are there; waits a moment for the first. Replies to messages that nobody
        asks for any more (their deadline passed) are thrown away."""
        self._inline = [job for job in self._inline if not job.expired]
        for reply in self._answered(self._inline.pop(0)) if self._inline else ():
            self._replies.put(reply)
        wanted, found = set(message_ids), []
        try:
            reply = self._replies.get(timeout=WAIT)
            while True:
                if reply.metadata.reply_to_message_id in wanted:
                    found.append(reply)
                reply = self._replies.get_nowait()
        except Empty:
            return found

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """For a ServerApp of one's own; the coordinator pushes and pulls by itself."""
        until = math.inf if timeout is None else time.monotonic() + timeout
        missing, replies = set(self.push_messages(messages)), []
        while missing and time.monotonic() < until:
            for reply in self.pull_messages(missing):
                missing.discard(reply.metadata.reply_to_message_id)
                replies.append(reply)
        return replies

    def context(self, node: int) -> dict[str, Any]:
        """What a message to this node is handled in, as JSON has it."""
        return {
            "run_id": 1,
            "node_id": node,
            "node_config": {
                "partition-id": node - 1,
                "num-partitions": self._clients,
                "state-dir": self._state_dir,
            },
            "run_config": self._run_config,
        }

    def _answered(self, job: Job) -> list[Message]:
        """Served here, over the same bytes as by a worker, so that nobody shares an object."""
        contexts, messages, _ = whole(cut(job.contexts, job.messages))
        with profile.span("other"):  # as the caller waits for nobody
            replies = answers(messages, contexts)
        return whole(cut(None, replies))[1]
