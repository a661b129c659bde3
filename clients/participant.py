"""What a client does with an order: assemble its adapter, train or evaluate, keep what stays."""

import logging
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from clients import private
from clients.account import Account
from clients.asked import Fit, Fitted, Rate, Talk
from clients.store import Missing, Store
from fedlora import guard, views
from fedlora.optimizers import Turn
from fedlora.orders import Order, answer
from fedlora.privacy.budget import Spent
from fedlora.privacy.central import clipped
from fedlora.resident import Resident
from fedlora.stacking import Member
from fedlora.strategy import Round, Strategy, stays
from fedlora.tensors import Tensors, nbytes, part_of, select
from fedlora.training import Trained
from fedlora.views import View
from fedlora.wire import Parcel, encode

log = logging.getLogger("fedlora.client")
LATEST = 1 << 30  # bytes of the largest view that a process holds on to

_latest: View | None = None  # that this process was last told to hold


def train(
    resident: Resident, store: Store, order: Order, parcel: Parcel, account: Account | None
) -> Talk:
    """One round of local training; the reply carries what the method uploads.

    Args:
        account: what private releases are paid for from on a node; a simulation has none.
    """
    adapter, strategy = resident.adapter, resident.strategy
    try:
        held, tensors = _assemble(store, order, parcel, resident.config.privacy.local)
    except Missing as e:
        return _stale(e)
    round, client = _round(resident, order), order.as_client()
    trains = guard.trains(strategy, round, adapter.parts)
    member = _member(resident, order, tensors, "train")
    before = select(member.tensors, trains)
    privacy = resident.config.privacy
    try:
        if privacy.local:
            after, metrics = yield from private.train(
                resident, store, order, member, trains, account
            )
        else:
            fitted: Fitted = yield Fit(member, trains)
            assert isinstance(fitted.told, Trained)
            after, metrics = fitted.tensors, {"loss": fitted.told.loss}
            metrics["seconds"] = fitted.seconds
    except Spent as e:
        return answer("spent", str(e))
    finite = math.isfinite(metrics.get("loss", 0.0))
    if finite and not any(_moved(k, before[k], t, round, strategy) for k, t in after.items()):
        wire = resident.config.run.wire
        return answer("error", f"training moved no weight by as much as run.wire = {wire} can tell")
    trained = {**tensors, **after}
    if kept := select(trained, stays(strategy) & adapter.parts):
        store.keep_own(kept, order.round, order.own, privacy.local)

    upload = guard.uploaded(strategy, trained, client, round, adapter.parts)
    if privacy.central:  # as the server does it too, to whatever comes
        start = guard.uploaded(strategy, tensors, client, round, adapter.parts)
        upload = clipped(upload, start, privacy.clip)
    reply = answer("ok", round=order.round, experiment=order.experiment)
    reply.tensors = encode(upload, round.wire, strategy.trained)
    reply.metrics = {} if privacy.central else metrics
    held.keep(store, order)
    return reply


def evaluate(
    resident: Resident, store: Store, order: Order, parcel: Parcel, account: Account | None
) -> Talk:
    """The client's own model on its held-out rows, and on the server's where that is asked.

    Under local privacy the first is noised and the second free: the model is private already."""
    try:
        held, tensors = _assemble(store, order, parcel, resident.config.privacy.local)
    except Missing as e:
        return _stale(e)
    privacy = resident.config.privacy
    reply = answer("ok", round=order.round, experiment=order.experiment)
    if privacy.central:
        held.keep(store, order)
        return reply
    member = _member(resident, order, tensors, "heldout")
    if len(member.encoded):
        own = yield Rate(member, "heldout")
        if privacy.local:
            reply.metrics = private.score(resident, store, order, own, account)
        else:
            found = {"score": own.score, "loss": own.loss, "rows": float(own.rows)}
            reply.metrics = {k: x for k, x in found.items() if math.isfinite(x)}
    if order.server_rows and len(rows := resident.encoded("", "test")):
        whole = yield Rate(replace(member, encoded=rows), "test")
        on_server = {"global": whole.score, "global_loss": whole.loss}
        reply.metrics |= {k: x for k, x in on_server.items() if math.isfinite(x)}
    held.keep(store, order)
    return reply


def _moved(name: str, before: Tensor, after: Tensor, round: Round, strategy: Strategy) -> bool:
    """Whether a tensor is another: one that leaves, where it arrives."""
    if part_of(name) in stays(strategy):
        return not torch.equal(before, after)
    return not torch.equal(before.to(round.wire), after.to(round.wire))


def _stale(e: Missing) -> Parcel:
    """Asks for what was lost. Where it was is this machine's affair."""
    log.warning("the server is asked for what this client lacks: %s", e)
    return answer("stale", lost=e.what)


def _member(resident: Resident, order: Order, tensors: Tensors, split: str) -> Member:
    """The client's whole adapter and its rows: where the view says nothing, what the adapter began
    with."""
    run = resident.config.run
    return Member(
        {**resident.adapter.initial(), **tensors},
        order.scale,
        resident.encoded(order.client, split),
        (run.seed, "train", order.client, order.round),
        Turn(order.round, run.rounds, frozenset(resident.strategy.shared)),
    )


@dataclass(frozen=True)
class Held:
    """The view that the server's order makes of the one that is held. It is kept with the answer:
    an order that comes to nothing leaves nothing."""

    view: View
    changed: bool

    def keep(self, store: Store, order: Order) -> None:
        if self.changed:
            store.keep_view(self.view, order.tag, order.basis)
        else:
            store.keep_same_view(order.tag, order.basis)


def _assemble(store: Store, order: Order, parcel: Parcel, private: bool) -> tuple[Held, Tensors]:
    """The view that the client is to hold, and its adapter: that view, then the parts that are its
    own.

    Raises Missing where its disk lacks what the server builds on."""
    view = _view(store, order, parcel)
    own = store.own(order.own, private) if order.own else {}
    changed = not order.basis or bool(parcel.tensors or order.drop)
    return Held(view, changed), {**view.tensors, **own}


def _view(store: Store, order: Order, parcel: Parcel) -> View:
    """The view that an order speaks of. Clients of one process are often to hold the same: it is
    made once, where the client has what it builds on too."""
    global _latest
    known = _latest
    if known and known.fingerprint == order.fingerprint and store.has_view(order.basis):
        return known
    held = store.view(order.basis) if order.basis else View({}, {})
    try:
        view = held.patched(views.Patch(parcel.tensors, order.drop, order.tails))
    except KeyError as e:
        raise Missing("view", f"the view {order.basis} lacks {e}") from None
    if view.fingerprint != order.fingerprint:
        raise Missing("view", f"the view built on {order.basis or 'nothing'} is not the server's")
    _latest = view if nbytes(view.tensors) <= LATEST else None
    return view


def _round(resident: Resident, order: Order) -> Round:
    run = resident.config.run
    return Round(order.round, order.purpose, run.seed, run.wire_dtype)
