"""The ClientApp: Flower's messages to and from `clients.participant`."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

import strategies
from clients import participant, ranks
from clients.account import Account
from clients.asked import Talk
from clients.channel import state_dir
from clients.excuse import excuse
from clients.once import Work, once
from clients.owner import flat, owner_of
from clients.passes import conclude
from clients.query import asked_for, gradients, hello
from clients.store import Store
from fedlora import settings, wire
from fedlora.errors import UserError
from fedlora.orders import Order, answer
from fedlora.resident import Node, Resident
from fedlora.wire import Parcel

app = ClientApp()

_resident: dict[str, Resident] = {}


def resident(context: Context) -> Resident:
    """The model and data for this run's configuration and this node's; a process keeps the latest
    one. The clients of a simulation share one."""
    owner = owner_of(context.node_config)
    given = flat(context.run_config)
    place = ranks.place(owner) if owner else None
    own = sorted(context.node_config.items()) if owner else None
    key = repr((sorted(given.items()), own, place))
    if key not in _resident:
        if owner and place:
            config, strategy = owner.resolve(context.run_config)
            node = Node(owner.data or "", owner.client or "", place.device, place.ranks)
            made = Resident(owner.applied(config), strategy, node)
        else:
            tree = settings.from_flat(given)
            known = strategies.settings()
            made = Resident(*settings.resolve(tree, strategies.load, ignore=known))
            if "state-dir" in context.node_config:  # of processes of one simulation
                made.share(state_dir(context.node_config))
        made.together = lambda name: _together(made, context, name)
        _resident.clear()
        _resident[key] = made
    return _resident[key]


def _together(own: Resident, context: Context, name: str) -> AbstractContextManager[None]:
    """Inside, the other ranks find a property of theirs too; they are to have the same rows."""
    if own.node.ranks.size == 1:
        return nullcontext()
    facts = {
        "do": "find",
        "property": name,
        "node_config": dict(context.node_config),
        "run_config": dict(context.run_config),
        "rows": own.division(_named(context, own.federation.clients)),
    }
    return ranks.all_do(own.node.ranks, facts)


def forget() -> None:
    """Drop the model and the data: the next message loads them anew."""
    _resident.clear()


def client_id(context: Context) -> str:
    """The id that stays the same when a node restarts: its own setting, or its partition's."""
    return _named(context, resident(context).federation.clients)


def _named(context: Context, clients: Sequence[str]) -> str:
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
        message, context, lambda asked: hello(resident(context), _allowed(context), context, asked)
    )


@app.query("gradients")
def query_gradients(message: Message, context: Context) -> Message:
    return _reply(message, context, lambda asked: _gradients(context, asked))


def _gradients(context: Context, parcel: Parcel) -> Parcel:
    client, own = _allowed(context), resident(context)
    account, run = _account(context, client), str(context.run_id)
    modules, _, stage = asked_for(own, parcel)
    kinds = [f"gradients {stage} {module}" for module in modules]
    if account:
        account.allow(run, *kinds)
    reply = gradients(own, client, parcel)
    if account:
        account.count(run, *kinds)
    return reply


@app.train()
def train(message: Message, context: Context) -> Message:
    return together([(message, context)])[0]


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    return together([(message, context)])[0]


def _allowed(context: Context, round: int = 0) -> str:
    """The client's id, where its owner allows a round of the run on its rows. Raises UserError."""
    client, own = client_id(context), resident(context)
    if owner := owner_of(context.node_config):
        owner.allow_rows(own.config, len(own.federation.trained[client]), round)
    return client


def together(asked: Sequence[tuple[Message, Context]]) -> list[Message]:
    """The replies to orders, all to train or all to evaluate, of one run: clients of this process
    that share passes through the model."""
    works = {"train": participant.train, "evaluate": participant.evaluate}
    try:
        shared = resident(asked[0][1])
    except Exception as e:
        parcels = [excuse(e, context) for _, context in asked]
    else:
        orders = [(works[m.metadata.message_type], m, context) for m, context in asked]
        talks = [_ordered(*order) for order in orders]
        parcels = conclude(shared, talks, lambda e: excuse(e, asked[0][1]))
    return [
        Message(wire.pack(parcel), reply_to=message)
        for parcel, (message, _) in zip(parcels, asked, strict=True)
    ]


def _ordered(work: Work, message: Message, context: Context) -> Talk:
    parcel = wire.unpack(message.content)
    order = Order.read(parcel.facts)
    client = _allowed(context, order.round)
    if order.purpose != message.metadata.message_type:
        return answer("error", f"the order is to {order.purpose}, and its message is another's")
    if order.client != client:
        return answer("error", f"the order is for {order.client}, not for {client}")
    root = state_dir(context.node_config).expanduser()
    store = Store(root, order.experiment, order.client)
    own, account = resident(context), _account(context, client)
    if account or own.config.privacy.local:
        return (yield from once(work, own, store, order, parcel, account))
    return (yield from work(own, store, order, parcel, None))


def _account(context: Context, client: str) -> Account | None:
    """What the owner of a node allows and has given; a simulation's client has no owner."""
    owner = owner_of(context.node_config)
    if owner is None:
        return None
    return Account(state_dir(context.node_config).expanduser(), owner, client)


def _reply(message: Message, context: Context, work: Callable[[Parcel], Parcel]) -> Message:
    """The reply to a question, or what went wrong."""
    try:
        parcel = work(wire.unpack(message.content))
    except Exception as e:
        parcel = excuse(e, context)
    return Message(wire.pack(parcel), reply_to=message)
