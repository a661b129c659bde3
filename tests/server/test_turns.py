"""What a round's training is told of the federation: where its schedule is, and what is shared."""

import pytest

from fedlora.optimizers import Turn
from fedlora.resident import Resident
from fedlora.tensors import select
from fedlora.training import train
from server.base import ServerBase
from server.roster import Roster
from tests.federation import Watch, federate, kept, same


@pytest.mark.parametrize(("method", "shared"), [("fedit", {"A", "B", "head"}), ("fedsa", {"A"})])
def test_a_client_trains_at_its_rounds_place(world, tmp_path, method, shared):
    """Each update of each round, to the bit: a client that sat rounds out is where the others are.
    FedProx pulls what the method shares, and a client's own parts go where they like."""
    given = {"run__clients_per_round": 2, "run__keep": "updates", "train__schedule": "linear"}
    ran = federate(world, tmp_path, method, train__warmup=5, train__proximal=0.3, **given)
    resident = Resident(ran.config, ran.strategy)
    firsts = set()
    for number in (1, 2, 3):
        for k in kept(ran, number):
            if method == "fedsa" and k.client in firsts:
                continue  # its own parts are no longer the server's
            firsts.add(k.client)
            resident.load(k.sent, k.scale)
            arguments = (resident.encoded(k.client, "train"), ran.config.train)
            seed, turn = (0, "train", k.client, number), Turn(number, 3, frozenset(shared))
            parts = {"A", "B", "head"}
            train(resident.task, resident.adapter, parts, *arguments, seed, turn=turn)
            assert same(resident.adapter.read(set(shared)), k.update), (number, k.client)
    assert len(firsts) == 3


def test_under_lora_fa_a_stays_and_b_alone_travels(world, tmp_path):
    """FedIT becomes exact: A is the first state's for ever."""
    given = {"train__optimizer": "lora-fa", "run__keep": "updates"}
    ran = federate(world, tmp_path, "fedit", **given)
    assert same(select(ran.state(3), {"A"}), select(ran.state(0), {"A"}))
    for k in kept(ran, 2):
        assert {name.rpartition(".")[2] for name in k.update} == {"B", "weight", "bias"}
        assert not select(k.update, {"A"})
    assert not same(select(ran.state(3), {"B"}), select(ran.state(0), {"B"}))
    assert ran.row(3)["failed"] == ran.row(3)["dropped"] == {}


def test_a_first_state_is_told_the_first_steps_rate(world, tmp_path):
    """lr over the warm-up's steps, which is Fed-SB's η."""
    ran = federate(world, tmp_path, "fedit", run__rounds=1, train__lr=0.02)
    for warmup, rate in ((0, 0.02), (5, 0.004)):
        train = ran.config.train.model_copy(update={"warmup": warmup})
        config = ran.config.model_copy(update={"train": train})
        resident = Resident(config, ran.strategy)
        base = ServerBase(resident, None, Roster(), Watch())
        assert base.learning_rate == pytest.approx(rate)
