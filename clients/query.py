"""What a client says before round 1: who it is, and, if a user opted in, its gradients."""

import logging
from contextlib import nullcontext

from flwr.app import Context

import fedlora
from clients.channel import state_dir
from clients.ranks import all_do
from clients.secret import proof
from fedlora import estimate
from fedlora.agreement import differences
from fedlora.errors import UserError
from fedlora.orders import answer
from fedlora.resident import Resident
from fedlora.wire import Parcel

log = logging.getLogger("fedlora.client")


def hello(resident: Resident, client: str, context: Context, parcel: Parcel) -> Parcel:
    """Id, training rows, rank limit, what everyone must agree on, and a proof that this is the node
    that had this id before. The server says in `parcel` what the run has; where this node has
    something else, its log says what."""
    _ = resident.verified
    own = {"version": fedlora.__version__, **resident.identity}
    if parcel.facts and (wrong := differences(parcel.facts, own)):
        log.error("this node cannot take part in the run: %s", "; ".join(wrong))
    if resident.node.data:
        for note in resident.notes:
            log.warning("%s", note)
    shown = {}
    if resident.node.client and "experiment" in parcel.facts:  # a simulation's have no disk each
        state = state_dir(context.node_config).expanduser()
        shown["proof"] = proof(state, str(parcel.facts["experiment"]), client)
    return answer(
        "ok",
        client=client,
        examples=len(resident.federation.trained[client]),
        rank=int(context.node_config.get("rank", 0)),
        **shown,
        **own,
    )


def gradients(resident: Resident, client: str, parcel: Parcel) -> Parcel:
    """The gradients of a group of layers summed over some of the client's rows, or their sketch.

    Facts in: `modules`, `rows` (how many of its rows), `stage` ("sum", "range", "project"),
    `size` (columns of the sketch). Shapes out, for G (m, n): "sum" G; "range" Y = G Omega (m, k),
    with Omega (n, k) from the run's seed; "project" Q^T G (k, n), where Q (m, k) was sent.
    """
    facts = parcel.facts
    if resident.config.privacy.on:
        raise UserError("under [privacy] no gradients of rows leave a client")
    if resident.strategy.model_dump().get("init") not in ("clients", "sketch"):
        raise UserError("this run's configuration does not allow gradients to leave a client")
    modules, rows, stage = asked_for(resident, parcel)
    ranks = resident.node.ranks
    reply = answer("ok")
    shapes = {m: resident.adapter.shapes[m] for m in modules}
    for group in estimate.groups(shapes, estimate.room(resident)):
        order = {"do": "sum", "modules": group, "rows": rows}
        # One rank alone can, where it has the whole base.
        with all_do(ranks, order, parcel.tensors) if ranks.sharded else nullcontext():
            grads = estimate.summed(resident, "train", client, group, rows, parcel.tensors)
        for module in group:
            g = grads.pop(module).cpu()
            if stage == "range":
                seed, size = resident.config.run.seed, int(facts["size"])
                g = g @ estimate.test_matrix(seed, module, g.shape[1], size)
            elif stage == "project":
                g = parcel.tensors[f"{module}.range"].mT @ g
            reply.tensors[module] = g
    return reply


def asked_for(resident: Resident, parcel: Parcel) -> tuple[list[str], int, str]:
    """(modules, rows, stage) of a question for gradients. Raises UserError where it is none."""
    facts = parcel.facts
    modules, rows, stage = facts.get("modules"), facts.get("rows"), facts.get("stage")
    if not (isinstance(modules, list) and set(modules) <= resident.adapter.shapes.keys()):
        raise UserError("a question for gradients names layers that this adapter does not have")
    if not (type(rows) is int and rows > 0 and stage in ("sum", "range", "project")):
        raise UserError("a question for gradients names a number of rows and a stage")
    return modules, rows, stage
