"""A server that sends one owner's node whatever orders it likes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.supercore.task_identity import TaskIdentity

import strategies
from clients.trainer import handle
from fedlora import settings, wire
from fedlora.orders import Order
from fedlora.tensors import Tensors
from fedlora.views import fingerprint, manifest
from fedlora.wire import Parcel
from tests.clients.nodes import Owned
from tests.federation import World

ORDER = Order(
    experiment="e",
    round=1,
    purpose="train",
    client="books",
    rank=4,
    scale=2.0,
    examples=81,
    tag="0001-0",
    basis="",
    fingerprint="",
    planned=3,
)


class Server:
    """What one node answers to orders that nobody checked.

    Attributes:
        node: its owner's settings, which the server cannot change.
        run: the configuration that the server gives a run, by dotted key.
    """

    def __init__(self, world: World, owned: Owned, limits: dict[str, Any], **run: Any) -> None:
        self.world, self.node = world, {**owned.nodes["books"], **limits}
        given = {k.replace("__", ".", 1): v for k, v in run.items()}
        labels = {"data.labels": ["bad", "good"]} if "epsilon" in limits else {}
        self.run = {"strategy.name": "fedit", "data.public": 0, **labels, **given}

    @property
    def state(self) -> Path:
        return Path(self.node["state-dir"])

    def order(self, tensors: Tensors | None = None, **given: Any) -> Parcel:
        """The reply to an order; its round names its view unless told otherwise."""
        tensors = tensors or {}
        round = given.get("round", ORDER.round)
        named = {"tag": f"{round:04d}-0", "fingerprint": fingerprint(manifest(tensors))}
        return self.say(replace(ORDER, **{**named, **given}).facts(), tensors)

    def say(self, facts: dict[str, Any], tensors: Tensors, kind: str = "") -> Parcel:
        """The reply to any facts."""
        kind = kind or str(facts.get("purpose", "train"))
        return self.sent(facts, tensors, kind, self.flat())

    def flat(self) -> dict[str, Any]:
        """The run's configuration as Flower has it."""
        config, _ = settings.resolve(self.world.tree(Path("runs"), self.run), strategies.load)
        return settings.to_flat(config)

    def sent(
        self, facts: dict[str, Any], tensors: Tensors, kind: str, flat: dict[str, Any]
    ) -> Parcel:
        """The reply over the same bytes as in a deployment, whatever the configuration says."""
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
        proto = message_to_proto(Message(wire.pack(Parcel(facts, tensors)), 1, kind))
        context = Context(1, 1, self.node, RecordDict(), flat)
        reply, _ = handle(message_from_proto(proto), context, proto.ByteSize())
        return wire.unpack(message_from_proto(message_to_proto(reply)).content)
