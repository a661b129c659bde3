"""An order is answered once: the same order again gets the reply that was kept.

So a round that is repeated, since the server or this client ended in the middle, goes on with the
same bits, and a private release is made once. Who dies between its payment and its reply has lost
what was paid: the same order is then a new release, with a secret of its own, and is paid for.
"""

import hashlib
import json
from collections.abc import Callable

from clients.account import Account
from clients.asked import Talk
from clients.store import Store
from fedlora.config import Config
from fedlora.orders import Order
from fedlora.resident import Resident
from fedlora.tensors import Tensors
from fedlora.views import fingerprint, manifest
from fedlora.wire import Parcel

Work = Callable[[Resident, Store, Order, Parcel, Account | None], Talk]


def once(
    work: Work,
    resident: Resident,
    store: Store,
    order: Order,
    parcel: Parcel,
    account: Account | None,
) -> Talk:
    """The reply that was kept for this order, or what `work` answers, which is kept from then on.
    Raises Refused where the owner allows no more answers."""
    this = digest(resident.config, order, parcel.tensors)
    if kept := store.reply(order.purpose, this):
        return kept
    if account:
        account.allow(order.experiment, order.purpose)
    reply = yield from work(resident, store, order, parcel, account)
    if reply.facts["status"] == "ok":
        if account:
            account.count(order.experiment, order.purpose)
        store.keep_reply(order.purpose, this, reply)
    return reply


def digest(config: Config, order: Order, tensors: Tensors) -> str:
    """SHA-256 of an order: what it says, its tensors, and the settings that it is followed by.
    What the server knows of others, and may know otherwise by the next time, is left out."""
    facts = {k: v for k, v in order.facts().items() if k not in ("planned", "spent")}
    chosen = config.model_dump(mode="json", exclude={"run", "simulation"})
    run = config.run.model_dump(mode="json", include={"seed", "wire"})
    rounds = config.run.rounds if config.train.counts_rounds else 0
    text = json.dumps([facts, fingerprint(manifest(tensors)), chosen, run, rounds], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
