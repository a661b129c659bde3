"""What a client does with an order: assemble its adapter, train or evaluate, keep what stays."""

import math
import time

import torch
from torch import nn

from clients import private
from clients.store import Missing, Store
from fedlora import views
from fedlora.errors import MethodError
from fedlora.guard import called, checked
from fedlora.orders import Order, answer
from fedlora.privacy.budget import Spent
from fedlora.privacy.central import clipped
from fedlora.resident import Resident
from fedlora.strategy import Round, stays
from fedlora.tensors import Tensors, select
from fedlora.training import train as fit
from fedlora.wire import Parcel, encode


def train(resident: Resident, store: Store, order: Order, parcel: Parcel) -> Parcel:
    """One round of local training; the reply carries what the method uploads."""
    started = time.monotonic()
    adapter, strategy = resident.adapter, resident.strategy
    try:
        tensors = _assemble(resident, store, order, parcel)
    except Missing as e:
        return answer("stale", str(e), lost=e.what)
    round, client = _round(resident, order), order.as_client()
    trains = called(strategy, "trains", round) & adapter.parts
    if not (parameters := adapter.trainable(trains)):
        where = f"{type(strategy).__name__}.trains"
        raise MethodError(f"{where} leaves nothing to train in round {order.round}")
    before = adapter.read(trains)
    privacy = resident.config.privacy
    try:
        if privacy.local:
            metrics = private.train(resident, store, order, tensors, trains)
        else:
            metrics = _fit(resident, order, parameters)
    except Spent as e:
        return answer("spent", str(e))
    after = adapter.read(trains)
    finite = math.isfinite(metrics.get("loss", 0.0))
    if finite and all(torch.equal(before[k], t) for k, t in after.items()):
        return answer("error", "training moved no weight")
    trained = {**tensors, **after}
    if kept := select(trained, stays(strategy) & adapter.parts):
        store.keep_own(kept, order.round, order.own)

    trainable = select(trained, adapter.parts)  # a frozen head is not the method's to send
    upload = checked(strategy, "upload", called(strategy, "upload", trainable, client, round))
    if privacy.central:
        sent = select(tensors, adapter.parts)
        start = checked(strategy, "upload", called(strategy, "upload", sent, client, round))
        upload = clipped(upload, start, privacy.clip)
    reply = answer("ok", round=order.round, experiment=order.experiment)
    reply.tensors = encode(upload, round.wire, strategy.trained)
    if not privacy.on:
        metrics["seconds"] = time.monotonic() - started
    reply.metrics = {} if privacy.central else metrics
    return reply


def evaluate(resident: Resident, store: Store, order: Order, parcel: Parcel) -> Parcel:
    """The client's own model on its held-out rows, and on the server's where that is asked.

    Under local privacy the first is noised and the second free: the model is private already."""
    started = time.monotonic()
    try:
        tensors = _assemble(resident, store, order, parcel)
    except Missing as e:
        return answer("stale", str(e), lost=e.what)
    model, task, privacy = resident.adapter.model, resident.task, resident.config.privacy
    reply = answer("ok", round=order.round, experiment=order.experiment)
    if privacy.central:
        return reply
    if len(rows := resident.encoded(order.client, "heldout")):
        own = task.evaluate(model, rows)
        if privacy.local:
            reply.metrics = private.score(resident, store, order, tensors, own)
        else:
            reply.metrics = {"score": own.score, "rows": float(own.rows)}
    if order.server_rows and len(rows := resident.encoded("", "test")):
        reply.metrics["global"] = task.evaluate(model, rows).score
    if not privacy.on:
        reply.metrics["seconds"] = time.monotonic() - started
    return reply


def _fit(resident: Resident, order: Order, parameters: list[nn.Parameter]) -> dict[str, float]:
    """Training without noise; the mean loss over its steps."""
    fitted = fit(
        resident.task,
        resident.adapter.model,
        parameters,
        resident.encoded(order.client, "train"),
        resident.config.train,
        (resident.config.run.seed, "train", order.client, order.round),
    )
    return {"loss": fitted.loss}


def _assemble(resident: Resident, store: Store, order: Order, parcel: Parcel) -> Tensors:
    """Load the client's whole adapter: the view it is to hold, then the parts that are its own.

    Raises Missing where its disk lacks what the server builds on."""
    held = store.view(order.basis) if order.basis else {}
    try:
        view = views.patched(held, views.Patch(parcel.tensors, order.keep, order.tails))
    except KeyError as e:
        raise Missing("view", f"the view {order.basis} lacks {e}") from None
    if views.fingerprint(views.manifest(view)) != order.fingerprint:
        raise Missing("view", f"the view built on {order.basis or 'nothing'} is not the server's")
    own = store.own(order.own) if order.own else {}
    store.keep_view(view, order.tag, order.basis)
    tensors = {**view, **own}
    resident.load(tensors, order.scale)
    return tensors


def _round(resident: Resident, order: Order) -> Round:
    run = resident.config.run
    return Round(order.round, order.purpose, run.seed, run.wire_dtype)
