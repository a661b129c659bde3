"""The ClientApp: Flower's messages to and from `clients.participant`."""

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

import strategies
from clients import participant
from clients.query import gradients, hello
from clients.store import Store
from fedlora import settings, wire
from fedlora.errors import MethodError, UserError
from fedlora.orders import Order, answer
from fedlora.resident import Resident
from fedlora.wire import Parcel

log = logging.getLogger("fedlora.client")
app = ClientApp()

_resident: dict[str, Resident] = {}


def resident(context: Context) -> Resident:
    """The model and data for this run's configuration; a process keeps the latest one."""
    key = json.dumps(dict(context.run_config), sort_keys=True)
    if key not in _resident:
        tree = settings.from_flat(context.run_config)
        config, strategy = settings.resolve(tree, strategies.load, ignore=strategies.settings())
        _resident.clear()
        _resident[key] = Resident(config, strategy)
    return _resident[key]


def client_id(context: Context) -> str:
    """The id that stays the same when a node restarts: its own setting, or its partition's."""
    if "client" in context.node_config:
        return str(context.node_config["client"])
    clients = resident(context).federation.clients
    index = int(context.node_config.get("partition-id", 0))
    if index >= len(clients):
        raise UserError(
            f"the data makes {len(clients)} clients ({', '.join(clients[:8])}), but this is node "
            f"number {index + 1}: start as many nodes as there are clients"
        )
    return clients[index]


def state_dir(context: Context) -> Path:
    """Where this node keeps what stays: its `state-dir`, or the user's state directory."""
    if "state-dir" in context.node_config:
        return Path(str(context.node_config["state-dir"]))
    return Path(os.environ.get("XDG_STATE_HOME", Path.home() / ".local/state")) / "fedlora"


@app.query()
def query(message: Message, context: Context) -> Message:
    return _reply(message, lambda parcel: hello(resident(context), client_id(context), context))


@app.query("gradients")
def query_gradients(message: Message, context: Context) -> Message:
    return _reply(message, lambda parcel: gradients(resident(context), client_id(context), parcel))


@app.train()
def train(message: Message, context: Context) -> Message:
    return _reply(message, lambda parcel: _ordered(participant.train, parcel, context))


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    return _reply(message, lambda parcel: _ordered(participant.evaluate, parcel, context))


def _ordered(
    work: Callable[[Resident, Store, Order, Parcel], Parcel], parcel: Parcel, context: Context
) -> Parcel:
    order = Order.read(parcel.facts)
    if order.client != client_id(context):
        return answer("error", f"the order is for {order.client}, not for {client_id(context)}")
    store = Store(state_dir(context), order.experiment, order.client)
    return work(resident(context), store, order, parcel)


def _reply(message: Message, work: Callable[[Parcel], Parcel]) -> Message:
    """Run the work; what goes wrong is told to the server in words, and logged here in full. In a
    private run those words, which might quote a row, stay here; a method's mistakes, which it makes
    over tensors, are told all the same."""
    try:
        parcel = work(wire.unpack(message.content))
    except MethodError as e:
        parcel = answer("wrong", str(e))
    except Exception as e:
        known = isinstance(e, UserError)
        log.error("this client could not answer: %s", e, exc_info=not known)
        if any(r.config.privacy.on for r in _resident.values()):
            parcel = answer("error", f"{type(e).__name__}: its own log says more")
        else:
            parcel = answer("error", str(e) if known else f"{type(e).__name__}: {e}")
    return Message(wire.pack(parcel), reply_to=message)
