"""FedSA: what stays on a client is its own, on its disk, and nowhere else.

Symbols: A (r, n) shared; B (m, r) and the head stay.
"""

import itertools

import pytest
import torch
from safetensors.torch import load_file

from fedlora.adapters import Adapter
from fedlora.evaluation import evaluate
from fedlora.resident import Resident
from fedlora.tensors import select
from fedlora.training import train
from server.card import card
from simulations import results
from tests.federation import federate, kept, same

OWN = {"B", "head"}


@pytest.fixture(scope="module")
def ran(world, tmp_path_factory):
    """Six rounds with two of three clients in each."""
    root = tmp_path_factory.mktemp("fedsa")
    return federate(
        world, root, "fedsa", run__rounds=6, run__keep="updates", run__clients_per_round=2
    )


def folder(ran, client):
    (found,) = (ran.run.path / "clients").glob(f"*/client-{client}")
    return found


def own(ran, client, number):
    return load_file(folder(ran, client) / f"own-{number:04d}.safetensors")


def took_part(ran):
    """{client: its rounds}"""
    found = {}
    for row in ran.rows("client"):
        found.setdefault(row["client"], []).append(row["round"])
    return found


def test_clients_keep_different_parts(ran):
    """Two clients with different data have different B and heads on their disks."""
    last = {c: own(ran, c, mine[-1]) for c, mine in took_part(ran).items()}
    assert len(last) == 3
    for one, other in itertools.combinations(last.values(), 2):
        assert one.keys() == other.keys() and {k[-1] for k in select(one, {"B"})} == {"B"}
        assert not any(torch.equal(t, other[k]) for k, t in one.items())


def test_training_goes_on_from_the_clients_own_parts(ran):
    """Doing a client's round again by hand, from the A that it was sent and the B that it kept
    the last time it took part, gives the B it kept and the A it uploaded, to the bit: rounds that
    it sat out changed nothing."""
    pairs = [(c, *mine[-2:]) for c, mine in took_part(ran).items()]
    assert any(number - before > 1 for _, before, number in pairs)
    for client, before, number in pairs:
        (sent,) = (k.sent for k in kept(ran, number) if k.client == client)
        (update,) = (k.update for k in kept(ran, number) if k.client == client)
        assert not select(sent, OWN)
        resident = Resident(ran.config, ran.strategy)
        resident.load({**sent, **own(ran, client, before)}, 2.0)
        train(
            resident.task,
            resident.adapter,
            {"A", "B", "head"},
            resident.encoded(client, "train"),
            ran.config.train,
            (0, "train", client, number),
        )
        assert same(resident.adapter.read(OWN), own(ran, client, number))
        assert same(resident.adapter.read({"A"}), update)


def test_what_stays_is_nowhere_else(ran):
    """No file of the server and none of another client holds a B or head that a client trained;
    the server's own B and head are still the first ones."""
    private = {}
    for client in took_part(ran):
        for path in folder(ran, client).glob("own-*.safetensors"):
            for tensor in load_file(path).values():
                private[tensor.numpy().tobytes()] = client
    first = ran.state(0)
    for path in ran.run.path.rglob("*.safetensors"):
        for name, tensor in load_file(path).items():
            owner = private.get(tensor.numpy().tobytes())
            assert owner is None or path.is_relative_to(folder(ran, owner)), (path, name)
    assert same(select(ran.state(6), OWN), select(first, OWN))
    for k in itertools.chain(*(kept(ran, n) for n in range(1, 7))):
        assert not select(k.update, OWN)


def test_both_scores_are_means_over_clients_own_models(ran):
    """`score` on the server's rows, equally weighted; `personalised` on each client's own rows,
    weighted by their number; over those who took part in the round."""
    on_test, on_own, rows = [], [], []
    for client, mine in took_part(ran).items():
        if mine[-1] != 6:
            continue
        resident, _ = results.loaded(ran.run, client)
        test = resident.encoded("", "test")
        mine = resident.encoded(client, "heldout")
        on_test.append(evaluate(resident.task, resident.adapter.model, test).score)
        on_own.append(evaluate(resident.task, resident.adapter.model, mine).score)
        rows.append(len(mine))
    assert len(rows) == 2
    row = ran.row(6)
    assert row["score"] == pytest.approx(sum(on_test) / 2)
    weighted = sum(s * n for s, n in zip(on_own, rows, strict=True)) / sum(rows)
    assert row["personalised"] == pytest.approx(weighted)


@pytest.mark.parametrize("kind", ["lora", "vera"])
def test_a_client_is_loaded_over_nobody(ran, kind):
    """A view that says nothing of a part gives that part's first value, not whatever the client
    before it left in the process."""
    settings = ran.config.adapter.model_copy(update={"kind": kind, "alpha": None})
    config = ran.config.model_copy(update={"adapter": settings})
    resident = Resident(config, ran.strategy)
    adapter: Adapter = resident.adapter
    first = adapter.initial()
    scale = 1.0 if kind == "vera" else 2.0
    resident.load({k: t + 1 for k, t in first.items()}, scale)
    shared = select(first, {"A", "d"})
    resident.load({k: t + 2 for k, t in shared.items()}, scale)
    assert same(
        adapter.read({"A", "B", "d", "b", "head", "U", "V"}),
        {**first, **{k: t + 2 for k, t in shared.items()}},
    )


def test_a_run_alone_shares_nothing(world, tmp_path):
    """The baseline of clients alone: nothing goes up, and each keeps all that it trains."""
    ran = federate(world, tmp_path, "local", run__keep="all")
    assert sum(row["bytes_up"] for row in ran.rows()) == 0
    assert same(ran.state(3), ran.state(0))
    kept_parts = [own(ran, c, 3) for c in took_part(ran)]
    for one, other in itertools.combinations(kept_parts, 2):
        assert not any(torch.equal(t, other[k]) for k, t in one.items())


def test_what_is_exported_of_nobody_says_what_it_lacks(ran, caplog):
    """It is not what the scores are of; a client's own says nothing of it."""
    says = "stay with each client"
    assert says in card(ran.run, ran.strategy) and says not in card(ran.run, ran.strategy, "books")
    said = "leaves B, head with each client"
    results.loaded(ran.run, "books")
    assert said not in caplog.text
    results.loaded(ran.run, None)
    assert said in caplog.text
