"""A rank beside the first, as a process of its own: started, told what to do, and ended by
`clients.ranks`.

    standard input    what to do: first whom to join, then {"do": "find" | "pass" | "sum", …}
    standard output   once, what its device is called, or why it cannot be used

Nothing that it finds out leaves it but by what ranks exchange.
"""

import logging
import os
import signal
import sys
import threading
from collections.abc import Mapping
from queue import SimpleQueue
from typing import Any

from flwr.app import Context, RecordDict

from clients import app, asked, passes, ranks
from clients.owner import Owner
from fedlora import estimate, parallel
from fedlora.errors import UserError
from fedlora.parallel import Ranks
from fedlora.resident import Resident
from fedlora.tensors import Tensors
from fedlora.untrusted import Log

log = logging.getLogger("fedlora.ranks")

Order = tuple[dict[str, Any], Tensors]


class Follower:
    """Does what it is told, on one device."""

    def __init__(self, rank: int, size: int, device: str) -> None:
        self._rank, self._size, self._device = rank, size, device
        self._loaded: tuple[Resident, str] | None = None  # and the client

    def do(self, facts: Mapping[str, Any], tensors: Tensors) -> None:
        """One order; its results are in what ranks exchange."""
        if facts["do"] == "find":
            self._loaded = None
            try:
                self._loaded = self._load(facts)
                getattr(self._loaded[0], facts["property"])
            except Exception:  # as it may befall the first rank too, which then tells of it
                log.exception("rank %d could not find its %s", self._rank, facts["property"])
            return
        assert self._loaded is not None, "the model is not loaded here"
        own, client = self._loaded
        if facts["do"] == "sum":
            estimate.summed(own, "train", client, facts["modules"], facts["rows"], tensors)
            return
        request = asked.heard(facts, tensors, own, client)
        own.load(tensors, request.member.scale)
        passes.made(own, request, facts["most"])

    def _load(self, facts: Mapping[str, Any]) -> tuple[Resident, str]:
        import torch

        node, run = facts["node_config"], facts["run_config"]
        owner = Owner.read(node)
        if owner.threads:
            torch.set_num_threads(owner.threads)
        ranks.follow(self._device, Ranks(self._rank, self._size, owner.parallel, self._device))
        context = Context(0, 0, node, RecordDict(), run)
        own, client = app.resident(context), app.client_id(context)
        if own.division(client) != facts["rows"]:
            raise UserError("the rows of this node changed as they were read")
        return own, client


def main() -> None:
    os.umask(0o077)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first rank decides
    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no answer
    orders: SimpleQueue[Order] = SimpleQueue()
    threading.Thread(target=_listen, args=(orders,), daemon=True).start()
    told, _ = orders.get()
    rank, size, device = told["rank"], told["size"], told["device"]
    try:
        said = {"name": ranks.called(device)}
    except Exception as e:
        said = {"fault": (str(e).splitlines() or [type(e).__name__])[0]}
    ranks.send(answer, said)
    answer.close()
    try:
        parallel.join(rank, size, device, told["store"])
        follower = Follower(rank, size, device)
        while True:
            follower.do(*orders.get())
    except Exception:
        log.exception("rank %d ends", rank)
        os._exit(1)  # ordinary ends wait for the other ranks


def _listen(orders: "SimpleQueue[Order]") -> None:
    """Until the first rank ends, and this one with it, wherever it is."""
    while order := ranks.receive(sys.stdin.buffer):
        orders.put(order)
    os._exit(0)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, handlers=[Log("%(name)s: %(message)s")])
    main()
