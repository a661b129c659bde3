"""Federations whose server adds the noise: who is in, what is added, what a crash changes."""

import json
from pathlib import Path

import pytest
import torch

from fedlora import wire
from fedlora.errors import UserError
from fedlora.privacy.accounting import epsilon
from fedlora.privacy.entropy import insecure, normals
from fedlora.tensors import Tensors
from tests.federation import Crash, Meddler, World, crash_at, federate, same

CENTRAL = {
    "privacy__mode": "central",
    "privacy__epsilon": 20.0,
    "privacy__clip": 0.5,
    "privacy__insecure_seed": 3,
}


@pytest.mark.parametrize(("sampled", "seed", "came", "expected"), [(1.0, 3, 3, 3), (1, 7, 2, 1)])
def test_a_round_is_the_noised_sum_over_the_expected_number(
    world: World, tmp_path: Path, sampled: float, seed: int, came: int, expected: int
) -> None:
    """x + (Σ Δ_i + σ C ξ) / (q K) from the updates as they were kept: uniform whatever the rows,
    each change of norm at most C, and q K the same however many came."""
    given = {**CENTRAL, "privacy__insecure_seed": seed, "run__clients_per_round": sampled}
    given |= {"run__keep": "all", "run__rounds": 1, "train__lr": 0.1}
    updates: list[Tensors] = []

    def look(reply):
        if reply.metadata.message_type == "train":
            updates.append(wire.unpack(reply.content).tensors)
        return reply

    ran = federate(world, tmp_path, "fedit", grid=Meddler(look), **given)
    history = json.loads((ran.run.path / "privacy.json").read_text())
    sigma = ran.config.privacy.clip * _sigma(history)
    assert len(updates) == came
    start = ran.state(0)
    names = sorted(updates[0])
    square = [sum((u[k] - start[k]).square().sum() for k in names) for u in updates]
    assert all(0.4 < float(s) ** 0.5 <= 0.5 * (1 + 1e-5) for s in square)
    for name in names:
        total = sum(u[name].double() - start[name].double() for u in updates)
        noise = normals(total.shape, insecure(seed, "noise", 1), "noise", name)
        wanted = start[name].double() + (total + sigma * noise) / expected
        torch.testing.assert_close(ran.state(1)[name].double(), wanted, atol=1e-6, rtol=1e-5)


def _sigma(ledger: dict) -> float:
    return ledger["mechanism"]["noise_multiplier"]


def test_the_server_clips_whatever_the_client_did(world: World, tmp_path: Path) -> None:
    """Updates that were blown up on their way move the model, but for the noise, which is the same,
    by at most 2 C each over the expected number. More is in tests/hostile/test_amplifying_place.py.
    """

    def blow_up(reply):
        if reply.metadata.message_type == "train":
            parcel = wire.unpack(reply.content)
            parcel.tensors = {k: t * 100 for k, t in parcel.tensors.items()}
            reply.content = wire.pack(parcel)
        return reply

    given = {**CENTRAL, "run__rounds": 1, "run__keep": "all"}
    ran = federate(world, tmp_path, "fedit", grid=Meddler(blow_up), **given)
    usual = federate(world, tmp_path / "usual", "fedit", **given)
    apart = sum((usual.state(1)[k] - t).square().sum() for k, t in ran.state(1).items())
    assert 0 < float(apart) ** 0.5 <= 2 * 0.5 * (1 + 1e-5)


def test_epsilon_counts_rounds_of_sampled_clients(world: World, tmp_path: Path) -> None:
    """ε after R rounds is that of R steps at q = m / K, reached from below within 2 %; nothing is
    told of clients' losses and scores; an empty round is noise alone."""
    seen: set[str] = set()
    asked: list[str] = []

    def look(reply):
        if reply.metadata.message_type in ("train", "evaluate"):
            seen.update(wire.unpack(reply.content).metrics)
            asked.append(reply.metadata.group_id)
        return reply

    given = {**CENTRAL, "run__rounds": 6, "run__clients_per_round": 1}
    ran = federate(world, tmp_path, "fedit", grid=Meddler(look), **given)
    rows = ran.rows()
    sigma = _sigma(json.loads((ran.run.path / "privacy.json").read_text()))
    assert rows[-1]["delta"] == pytest.approx(1 / 6)
    assert rows[-1]["epsilon"] == pytest.approx(epsilon([(sigma, 1 / 3, 6)], 1 / 6))
    assert 0.98 * 20 <= rows[-1]["epsilon"] <= 20
    assert not seen
    counts = [asked.count(str(number)) for number in range(1, 7)]
    assert len(set(counts)) > 1, "Poisson sampling: not the same number each round"
    if not counts[-1]:
        assert not same(ran.state(6), ran.state(5))


@pytest.mark.parametrize("method", ["ffa", "fedsa", "fedsb", "fslora"])
def test_linear_methods_take_central_noise(world: World, tmp_path: Path, method: str) -> None:
    """Every method that is a weighted mean runs; what it does not share has no noise."""
    ran = federate(world, tmp_path, method, **{**CENTRAL, "run__rounds": 1, "run__keep": "all"})
    assert not ran.watch.reasons
    before, after = ran.state(0), ran.state(1)
    moved = {k.rpartition(".")[2] for k in after if not torch.equal(before[k], after[k])}
    parts = {p if p in "ABR" else "head" for p in moved}
    assert parts == set(ran.strategy.shared & ran.resident.adapter.parts)


@pytest.mark.parametrize("seeded", [True, False])
def test_a_restart_in_the_middle_changes_nothing(
    world: World, tmp_path: Path, seeded: bool
) -> None:
    """A round that is repeated from the same state has the same clients and noise, and costs
    once."""
    given = {**CENTRAL, "run__clients_per_round": 2}
    if not seeded:
        del given["privacy__insecure_seed"]
    with pytest.raises(Crash):
        federate(world, tmp_path / "cut", "fedit", watch=crash_at(2, "evaluate"), **given)
    spent = json.loads((tmp_path / "cut/run/privacy.json").read_text())
    ran = federate(world, tmp_path / "cut", "fedit", resume=True, run__keep="all", **given)
    assert ran.row(3)["epsilon"] <= 20
    assert _steps(json.loads((ran.run.path / "privacy.json").read_text())) == 3
    assert _steps(spent) == 2
    assert not (ran.run.path / "sampled.json").exists(), "who was in is nobody's to know"
    if seeded:
        whole = federate(world, tmp_path / "whole", "fedit", **given)
        assert same(whole.state(3), ran.state(3))


def _steps(ledger: dict) -> int:
    return sum(steps for _, _, steps in ledger["history"])


def test_past_the_target_the_run_ends(world: World, tmp_path: Path) -> None:
    """More rounds than were planned: the run says that the budget is spent and adds nothing."""
    federate(world, tmp_path, "fedit", **{**CENTRAL, "run__rounds": 2})
    with pytest.raises(UserError, match=r"privacy budget is spent.*model of round 2"):
        federate(world, tmp_path, "fedit", resume=True, **{**CENTRAL, "run__rounds": 3})


def test_a_method_that_is_no_mean_is_refused(world: World, tmp_path: Path) -> None:
    """FedEx needs every update by itself; the message says which methods and modes there are."""
    with pytest.raises(UserError, match=r"FedEx.*privacy\.mode = local"):
        federate(world, tmp_path, "fedex", **CENTRAL)
