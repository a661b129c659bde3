"""Nodes with rows of their own in a federation of one process, each served as by its trainer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto

from clients.trainer import handle
from fedlora.config import Data
from simulations import divide
from simulations.grid import InProcessGrid
from simulations.pool import Job
from tests.federation import World

Settings = dict[str, Any]


class Owned:
    """Files of three owners and a coordinator's folder with nobody's rows.

    Attributes:
        together: a folder with everything, for a simulation of the same files.
        server: the coordinator's folder.
        nodes: each client's node-config.
    """

    def __init__(self, world: World, root: Path) -> None:
        self.together, self.server = root / "together", root / "server"
        clients = divide.divide(self.together, Data(name=str(world.data), public=16), seed=0)
        self.server.mkdir()
        (self.server / "test.jsonl").write_bytes((self.together / "test.jsonl").read_bytes())
        self.nodes: dict[str, Settings] = {
            client: {
                "client": client,
                "data": str(self.together / f"{client}.jsonl"),
                "model": str(world.model),
                "state-dir": str(root / f"state-{client}"),
            }
            for client in clients
        }

    def run(self, folder: Path, **given: Any) -> Settings:
        """Settings of a run on one of the folders, for `federate`."""
        data = {"data__name": str(folder), "data__partition": "split", "data__public": 0}
        return {**data, **given}

    def grid(self, *clients: str, **given: Any) -> Callable[[InProcessGrid], InProcessGrid]:
        """A grid of these clients' nodes, by default all, with more settings for each."""
        more = {k.replace("_", "-"): v for k, v in given.items()}
        chosen = [self.nodes[c] | more for c in clients or self.nodes]

        def owned(grid: InProcessGrid) -> InProcessGrid:
            simulated = grid.context
            grid._clients = len(chosen)
            grid.context = lambda node: {**simulated(node), "node_config": chosen[node - 1]}
            grid._answered = answered
            return grid

        return owned


def answered(job: Job) -> list[Message]:
    """The trainer's replies, over the same bytes as in a deployment."""
    replies = []
    for message, given in zip(job.messages, job.contexts, strict=True):
        proto = message_to_proto(message)
        context = Context(state=RecordDict(), **given)
        reply, _ = handle(message_from_proto(proto), context, proto.ByteSize())
        replies.append(message_from_proto(message_to_proto(reply)))
    return replies
