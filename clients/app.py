"""The ClientApp: Flower's messages to and from `clients.participant`."""

import json
import logging
from collections.abc import Callable

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

import strategies
from clients import participant
from clients.channel import state_dir
from clients.owner import Refused, flat, owner_of
from clients.query import gradients, hello
from clients.store import Store
from fedlora import settings, wire
from fedlora.errors import MethodError, UserError
from fedlora.orders import Order, answer
from fedlora.resident import Node, Resident
from fedlora.wire import Parcel

log = logging.getLogger("fedlora.client")
app = ClientApp()

_resident: dict[str, Resident] = {}


def resident(context: Context) -> Resident:
    """The model and data for this run's configuration and this node's; a process keeps the latest
    one. The clients of a simulation share one."""
    owner = owner_of(context.node_config)
    given = flat(context.run_config)
    key = json.dumps([given, dict(context.node_config) if owner else None], sort_keys=True)
    if key not in _resident:
        if owner:
            config, strategy = owner.resolve(context.run_config)
            node = Node(owner.data or "", owner.client or "", owner.device, owner.epsilon)
            made = Resident(owner.applied(config), strategy, node)
        else:
            tree = settings.from_flat(given)
            known = strategies.settings()
            made = Resident(*settings.resolve(tree, strategies.load, ignore=known))
            if "state-dir" in context.node_config:  # of processes of one simulation
                made.share(state_dir(context.node_config))
        _resident.clear()
        _resident[key] = made
    return _resident[key]


def forget() -> None:
    """Drop the model and the data: the next message loads them anew."""
    _resident.clear()


def client_id(context: Context) -> str:
    """The id that stays the same when a node restarts: its own setting, or its partition's."""
    clients = resident(context).federation.clients
    if "client" in context.node_config:
        id = str(context.node_config["client"])
        if id not in clients:
            raise UserError(
                f"this node is client {id}, and the run's data has none of that name but "
                f"{', '.join(clients[:8])}: give the node rows of its own (data), or correct client"
            )
        return id
    index = int(context.node_config.get("partition-id", 0))
    if index >= len(clients):
        raise UserError(
            f"the data makes {len(clients)} clients ({', '.join(clients[:8])}), but this is node "
            f"number {index + 1}: start as many nodes as there are clients"
        )
    return clients[index]


@app.query()
def query(message: Message, context: Context) -> Message:
    return _reply(
        message, lambda parcel: hello(resident(context), _allowed(context), context, parcel)
    )


@app.query("gradients")
def query_gradients(message: Message, context: Context) -> Message:
    return _reply(message, lambda parcel: gradients(resident(context), _allowed(context), parcel))


@app.train()
def train(message: Message, context: Context) -> Message:
    return _reply(message, lambda parcel: _ordered(participant.train, parcel, context))


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    return _reply(message, lambda parcel: _ordered(participant.evaluate, parcel, context))


def _allowed(context: Context, round: int = 0) -> str:
    """The client's id, where its owner allows a round of the run on its rows. Raises UserError."""
    client, own = client_id(context), resident(context)
    if owner := owner_of(context.node_config):
        owner.allow_rows(own.config, own.federation.examples[client], round)
    return client


def _ordered(
    work: Callable[[Resident, Store, Order, Parcel], Parcel], parcel: Parcel, context: Context
) -> Parcel:
    order = Order.read(parcel.facts)
    client = _allowed(context, order.round)
    if order.client != client:
        return answer("error", f"the order is for {order.client}, not for {client}")
    root = state_dir(context.node_config).expanduser()
    store = Store(root, order.experiment, order.client)
    return work(resident(context), store, order, parcel)


def _reply(message: Message, work: Callable[[Parcel], Parcel]) -> Message:
    """Run the work; what goes wrong is told to the server in words, and logged here in full. In a
    private run those words, which might quote a row, stay here; a method's mistakes, which it makes
    over tensors, and what an owner refuses are told all the same."""
    try:
        parcel = work(wire.unpack(message.content))
    except MethodError as e:
        parcel = answer("wrong", str(e))
    except Refused as e:
        log.error("refused: %s", e)
        parcel = answer("error", str(e))
    except Exception as e:
        known = isinstance(e, UserError)
        log.error("this client could not answer: %s", e, exc_info=not known)
        if any(r.config.privacy.on for r in _resident.values()):
            parcel = answer("error", f"{type(e).__name__}: its own log says more")
        else:
            parcel = answer("error", str(e) if known else f"{type(e).__name__}: {e}")
    return Message(wire.pack(parcel), reply_to=message)
