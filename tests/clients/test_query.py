"""Gradients from clients: only where the run allows it, and then what the equations say.

Shapes: G (m, n) the loss's gradient at W0 summed over rows; Fed-SB's start is
−η sign(Σ G) = U S Vᵀ, B = U_r, R = S_r / s, A = V_rᵀ.
"""

import re

import pytest
import torch
import torch.nn.functional as F

from clients.query import gradients
from fedlora import estimate, wire
from fedlora.errors import UserError
from fedlora.tensors import modules
from fedlora.wire import Parcel
from tests.federation import Meddler, federate, meddled

FEDSB = {"adapter__rank": 4, "train__lr": 5e-3, "run__rounds": 1}


def plain_gradient(resident, client, module, rows):
    """G by autograd through the plain model, over the same rows, one at a time."""
    model = resident.task.model(resident.config.run.seed)
    weight = model.get_submodule(module).weight
    encoded = resident.encoded(client, "train")
    total = torch.zeros_like(weight, dtype=torch.float64)
    for i in rows:
        batch = resident.task.batch(encoded, [i])
        labels = batch.pop("labels")
        loss = F.cross_entropy(model(**batch).logits, labels)
        total += torch.autograd.grad(loss, weight)[0].double()
    return total


@pytest.fixture
def asked_for_all(monkeypatch):
    """Every client gives the gradient over all of its rows, so that no draw has to be known."""
    monkeypatch.setattr("server.base.ROWS", 10**6)


def test_clients_gradients_are_summed_before_the_sign(world, tmp_path, asked_for_all):
    """init = clients: B R A is the best rank-r step along −sign of the sum over all clients."""
    ran = federate(
        world, tmp_path, "fedsb", strategy__init="clients", data__public=0, run__keep="all", **FEDSB
    )  # fmt: skip
    state, resident = ran.state(0), ran.resident
    for module in modules(state, "R"):
        total = sum(
            plain_gradient(resident, c, module, range(len(resident.encoded(c, "train"))))
            for c in resident.federation.clients
        )
        U, S, Vt = torch.linalg.svd(-5e-3 * total.sign(), full_matrices=False)
        step = U[:, :4] * S[:4] @ Vt[:4]
        B, R, A = (state[f"{module}.{part}"].double() for part in "BRA")
        torch.testing.assert_close(B @ R @ A, step, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("init", "says_so"), [("clients", True), ("server", False)])
def test_the_run_says_that_gradients_crossed(world, tmp_path, init, says_so):
    """Gradients are no adapter tensors: a run in which they leave clients says so, and only it."""
    ran = federate(world, tmp_path, "fedsb", strategy__init=init, **FEDSB)
    assert any("sent gradients" in note for note in ran.watch.notes) is says_so


def test_a_sketch_gives_the_sign_of_the_low_rank_estimate(world, tmp_path, asked_for_all):
    """init = sketch: G Ω, orthonormalised, then QᵀG; sign(Q QᵀG) is what is decomposed."""
    ran = federate(
        world, tmp_path, "fedsb", strategy__init="sketch", data__public=0, run__keep="all", **FEDSB
    )  # fmt: skip
    state, resident = ran.state(0), ran.resident
    for module in modules(state, "R"):
        total = sum(
            plain_gradient(resident, c, module, range(len(resident.encoded(c, "train"))))
            for c in resident.federation.clients
        )
        omega = estimate.test_matrix(0, module, total.shape[1], 8).double()
        Q = torch.linalg.qr(total @ omega).Q
        U, S, Vt = torch.linalg.svd(-5e-3 * (Q @ Q.T @ total).sign(), full_matrices=False)
        B, R, A = (state[f"{module}.{part}"].double() for part in "BRA")
        torch.testing.assert_close(B @ R @ A, U[:, :4] * S[:4] @ Vt[:4], rtol=0, atol=2e-5)


# Entries of G over the two query (32, 32) and two intermediate (48, 32) layers; the head goes down.
G, HEAD = 2 * (32 * 32 + 48 * 32), 32 * 2 + 2
Y, C = 2 * (32 * 8 + 48 * 8), 2 * (8 * 32 + 8 * 32)  # G Ω (m, 2r) and QᵀG (2r, n)


@pytest.mark.parametrize(
    ("init", "up", "down"),
    [("server", 0, 0), ("xs", 0, 0), ("clients", G, HEAD), ("sketch", Y + C, 2 * HEAD + Y)],
)
def test_bytes_of_the_start_count_as_round_0(world, tmp_path, init, up, down):
    """For three clients; the server's own rows cost nothing."""
    ran = federate(world, tmp_path, "fedsb", strategy__init=init, **FEDSB)
    row = ran.row(0)
    assert (row["bytes_up"], row["bytes_down"]) == (3 * 4 * up, 3 * 4 * down)


@pytest.mark.parametrize(("room", "sweeps"), [(10**9, 1), (4 * (48 + 32) * 32, 2)])
def test_the_servers_rows_are_gone_over_as_often_as_memory_demands(
    world, tmp_path, monkeypatch, room, sweeps
):
    """Once, where the gradients of all layers fit; each layer is measured once."""
    groups = []

    def noted(resident, split, client, modules, *rest):
        groups.append(modules)
        return {m: torch.randn(resident.adapter.shapes[m]) for m in modules}

    monkeypatch.setattr(estimate, "room", lambda _: room)
    monkeypatch.setattr(estimate, "summed", noted)
    ran = federate(world, tmp_path, "fedsb", strategy__init="server", **FEDSB)
    assert len(groups) == sweeps
    assert [m for group in groups for m in group] == list(ran.resident.adapter.shapes)


def test_a_client_refuses_where_the_run_does_not_allow_it(world, tmp_path):
    """Whatever the server asks: its own configuration decides."""
    ran = federate(world, tmp_path, "fedsb", strategy__init="server", **FEDSB)
    module = next(iter(ran.resident.adapter.shapes))
    asked = Parcel({"stage": "sum", "modules": [module], "rows": 8})
    with pytest.raises(UserError, match="does not allow gradients to leave a client"):
        gradients(ran.resident, "books", asked)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda p: p.facts.update(status="error", reason="no rows"), "no rows"),
        (lambda p: p.tensors.clear(), "not those of the method"),
        (lambda p: [t.fill_(float("nan")) for t in p.tensors.values()], "not finite"),
        (lambda p: p.tensors.update({k: t.T for k, t in p.tensors.items()}), r"is \("),
    ],
)
def test_a_start_without_a_clients_gradients_is_that_of_the_others(world, tmp_path, change, reason):
    """A note names the client; where nobody gives any there is no first state."""
    grid = meddled("query.gradients", 2, change, round=0)
    ran = federate(world, tmp_path, "fedsb", grid=grid, strategy__init="clients", **FEDSB)
    (note,) = [n for n in ran.watch.notes if "films" in n]
    assert re.search(f"gave no gradients.*{reason}", note)

    def all_of_them(reply):
        if reply.metadata.message_type == "query.gradients":
            parcel = wire.unpack(reply.content)
            change(parcel)
            reply.content = wire.pack(parcel)
        return reply

    given = {"grid": Meddler(all_of_them), "strategy__init": "clients", **FEDSB}
    with pytest.raises(UserError, match=f"no client gave gradients.*films: .*{reason}"):
        federate(world, tmp_path / "none", "fedsb", **given)
