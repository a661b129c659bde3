"""Federations whose server adds the noise: who is in, what is added, what a crash changes."""

import json
from pathlib import Path

import pytest
import torch

from fedlora import wire
from fedlora.errors import UserError
from fedlora.privacy.accounting import epsilon
from fedlora.privacy.entropy import insecure, normals
from tests.federation import Crash, Meddler, World, crash_at, federate, kept, meddled, same

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
    given |= {"run__keep": "updates", "run__rounds": 1, "train__lr": 0.1}
    ran = federate(world, tmp_path, "fedit", **given)
    history = json.loads((ran.run.path / "privacy.json").read_text())
    sigma = ran.config.privacy.clip * _sigma(history)
    updates = kept(ran, 1)
    assert len(updates) == came
    start = ran.state(0)
    names = sorted(updates[0].update)
    square = [sum((u.update[k] - u.sent[k]).square().sum() for k in names) for u in updates]
    assert all(0.4 < float(s) ** 0.5 <= 0.5 * (1 + 1e-5) for s in square)
    for name in names:
        total = sum(u.update[name].double() - u.sent[name].double() for u in updates)
        noise = normals(total.shape, insecure(seed, "noise", 1), "noise", name)
        wanted = start[name].double() + (total + sigma * noise) / expected
        torch.testing.assert_close(ran.state(1)[name].double(), wanted, atol=1e-6, rtol=1e-5)


def _sigma(ledger: dict) -> float:
    return ledger["mechanism"]["noise_multiplier"]


def test_the_server_clips_whatever_the_client_did(world: World, tmp_path: Path) -> None:
    """An update that was blown up on its way counts as its clipped self: the sum of three moves no
    further than 2 C from where it is with the client's own. More is in
    tests/hostile/test_amplifying_place.py."""

    def blow_up(parcel):
        parcel.tensors = {k: t * 100 for k, t in parcel.tensors.items()}

    given = {**CENTRAL, "run__rounds": 1}
    grids = [Meddler(lambda reply: reply), meddled("train", 1, blow_up, 1)]
    own, blown = (
        federate(world, tmp_path / str(i), "fedit", grid=grid, **given).state(1)
        for i, grid in enumerate(grids)
    )
    moved = sum(float((own[k] - blown[k]).double().square().sum()) for k in own) ** 0.5
    assert 0 < 3 * moved <= 2 * 0.5 * (1 + 1e-4)


def test_epsilon_counts_rounds_of_sampled_clients(world: World, tmp_path: Path) -> None:
    """ε after R rounds is that of R steps at q = m / K, reached from below within 2 %; nothing is
    told of clients' losses and scores; an empty round is noise alone."""
    seen: set[str] = set()

    def look(reply):
        if reply.metadata.message_type in ("train", "evaluate"):
            seen.update(wire.unpack(reply.content).metrics)
        return reply

    given = {**CENTRAL, "run__rounds": 6, "run__clients_per_round": 1}
    ran = federate(world, tmp_path, "fedit", grid=Meddler(look), **given)
    rows = ran.rows()
    sigma = _sigma(json.loads((ran.run.path / "privacy.json").read_text()))
    assert rows[-1]["delta"] == pytest.approx(1 / 6)
    assert rows[-1]["epsilon"] == pytest.approx(epsilon([(sigma, 1 / 3, 6)], 1 / 6))
    assert 0.98 * 20 <= rows[-1]["epsilon"] <= 20
    assert not seen
    counts = [r["clients"] for r in rows[1:]]
    assert len(set(counts)) > 1, "Poisson sampling: not the same number each round"
    for empty in (r["round"] for r in rows[1:] if r["clients"] == 0):
        assert not same(ran.state(empty), ran.state(empty - 1)) if empty == 6 else True


@pytest.mark.parametrize("method", ["ffa", "fedsa", "fedsb", "fslora"])
def test_linear_methods_take_central_noise(world: World, tmp_path: Path, method: str) -> None:
    """Every method that is a weighted mean runs; what it does not share has no noise."""
    ran = federate(world, tmp_path, method, **{**CENTRAL, "run__rounds": 1, "run__keep": "all"})
    assert ran.row(1)["clients"] == 3
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
