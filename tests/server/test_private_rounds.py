"""Federations whose clients train by DP-SGD: what is spent, what is told, what a crash changes."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from clients import app as client_app
from fedlora import wire
from fedlora.errors import Failed
from fedlora.privacy.accounting import epsilon
from tests.federation import Crash, Meddler, Ran, Watch, World, crash_at, federate, meddled, same

PRIVATE = {
    "run__rounds": 3,
    "train__steps": 3,
    "data__holdout": 0.2,
    "privacy__epsilon": 4.0,
    "privacy__insecure_seed": 7,
}
ROWS = {"books": 60, "films": 40, "shops": 27}  # training rows in tests/federation.py's world
REAL = {k: v for k, v in PRIVATE.items() if k != "privacy__insecure_seed"}


def spent(ran: Ran, number: int) -> dict[str, float]:
    return {r["client"]: r["epsilon"] for r in ran.rows("client") if r["round"] == number}


def test_epsilon_is_that_of_all_rounds_together_and_reached_from_below(
    world: World, tmp_path: Path
) -> None:
    """Each client's ε after round t is that of one sequence of t · steps steps with the σ, q and δ
    it reports; after the planned rounds it lies within 2 % below the target; the round's is the
    largest."""
    ran = federate(world, tmp_path, "fedit", **PRIVATE)
    assert ran.row(0)["epsilon"] == 0.0
    for row in ran.rows("client"):
        q = 8 / row["examples"]
        assert row["sample_rate"] == pytest.approx(q)
        assert row["delta"] == pytest.approx(1 / (2 * row["examples"]))
        assert row["steps"] == 3 * row["round"]
        whole = [(row["noise_multiplier"], row["sample_rate"], row["steps"])]
        assert row["epsilon"] == pytest.approx(epsilon(whole, row["delta"]))
    last = spent(ran, 3)
    assert all(0.98 * 4 <= e <= 4 for e in last.values())
    assert ran.row(3)["epsilon"] == max(last.values())
    sigmas = {r["noise_multiplier"] for r in ran.rows("client")}
    assert len(sigmas) == 3, "clients of different size need different noise"


def test_nothing_but_the_documented_leaves_a_client(world: World, tmp_path: Path) -> None:
    """Replies hold tensors of the method, the budget, noised statistics and scores: no loss, no
    time, and neither is in the metrics."""
    seen: set[str] = set()

    def look(reply):
        if reply.metadata.message_type in ("train", "evaluate"):
            seen.update(wire.unpack(reply.content).metrics)
        return reply

    ran = federate(world, tmp_path, "fedit", grid=Meddler(look), **PRIVATE)
    budget = {"epsilon", "delta", "noise_multiplier", "sample_rate", "steps"}
    assert seen == budget | {"clipped", "gradient_norm", "score", "rows"}
    assert all(r["loss"] is None and r["seconds"] is None for r in ran.rows("client"))
    assert all(r["loss"] is None for r in ran.rows())
    assert ran.row(3)["score"] is not None  # the server's own rows


def test_scores_are_noised_and_off_without_a_target(world: World, tmp_path: Path) -> None:
    """A client's score is not the share of an integer count; where only σ is set there is none."""
    ran = federate(world, tmp_path, "fedit", **PRIVATE)
    scores = [(r["score"], r["client"]) for r in ran.rows("client")]
    held = {"books": 17, "films": 12, "shops": 7}
    assert all(0 <= s <= 1 for s, _ in scores)
    inside = [s * held[c] for s, c in scores if 0 < s < 1]
    assert inside and all(abs(x - round(x)) > 1e-6 for x in inside)
    given = {**PRIVATE, "privacy__epsilon": None, "privacy__noise_multiplier": 2.0}
    plain = federate(world, tmp_path / "sigma", "fedit", **given)
    assert all(r["score"] is None and r["noise_multiplier"] == 2.0 for r in plain.rows("client"))


@pytest.mark.parametrize("method", ["fedex", "ffa", "fedsa", "fedsb", "fslora"])
def test_every_method_trains_privately(world: World, tmp_path: Path, method: str) -> None:
    """Two rounds of each method: every client's update is used, and ε stays within the target."""
    ran = federate(world, tmp_path, method, **{**PRIVATE, "run__rounds": 2})
    row = ran.row(2)
    assert row["clients"] == 3 and not row["failed"] and not row["dropped"]
    assert 3.9 < row["epsilon"] <= 4
    assert row["score"] is not None  # FedSA's too: clients' models are private already


def test_vera_trains_privately(world: World, tmp_path: Path) -> None:
    """Vectors, which Opacus has no rule for, are trained by the stacked engine."""
    ran = federate(
        world,
        tmp_path,
        "fedsa",
        adapter__kind="vera",
        adapter__rank=16,
        **{**PRIVATE, "run__rounds": 1},
    )
    assert ran.row(1)["clients"] == 3


def test_noise_repeats_with_an_insecure_seed_only(world: World, tmp_path: Path) -> None:
    """Two runs are the same bits with the same insecure seed; without it they differ; the log
    warns of it."""
    short = {"run__rounds": 1}
    one = federate(world, tmp_path / "1", "fedit", **{**PRIVATE, **short})
    two = federate(world, tmp_path / "2", "fedit", **{**PRIVATE, **short})
    assert same(one.state(1), two.state(1))
    assert any("insecure_seed" in n for n in one.watch.notes)
    real = [federate(world, tmp_path / str(i), "fedit", **{**REAL, **short}) for i in (3, 4)]
    assert not same(real[0].state(1), real[1].state(1))
    assert not any("insecure" in n for n in real[0].watch.notes)


@pytest.mark.parametrize("phase", ["train", "aggregate", "evaluate"])
def test_a_restart_in_the_middle_changes_nothing(world: World, tmp_path: Path, phase: str) -> None:
    """A server that ends in round 2 and goes on: the same states and metrics as without."""
    whole = federate(world, tmp_path / "whole", "fedsa", run__keep="all", **PRIVATE)
    given = {"run__keep": "all", **PRIVATE}
    with pytest.raises(Crash):
        federate(world, tmp_path / "cut", "fedsa", watch=crash_at(2, phase), **given)
    cut = federate(world, tmp_path / "cut", "fedsa", resume=True, **given)
    assert all(same(whole.state(n), cut.state(n)) for n in range(4))
    strip = [
        [{k: v for k, v in r.items() if k != "seconds"} for r in ran.rows("client")]
        for ran in (whole, cut)
    ]
    assert strip[0] == strip[1]


def test_a_repeated_round_is_the_same_release_and_costs_once(world: World, tmp_path: Path) -> None:
    """With noise from the operating system too: the round that a crash cut off is sent again to
    the bit, and ε is that of three rounds."""
    sent: list[dict[str, torch.Tensor]] = []

    def note(reply):
        about = reply.metadata
        if (about.message_type, about.group_id, about.src_node_id) == ("train", "2", 1):
            sent.append(wire.unpack(reply.content).tensors)
        return reply

    with pytest.raises(Crash):
        federate(
            world, tmp_path, "fedit", watch=crash_at(2, "aggregate"), grid=Meddler(note), **REAL
        )
    ran = federate(world, tmp_path, "fedit", resume=True, grid=Meddler(note), **REAL)
    assert len(sent) == 2 and same(*sent)
    assert {r["steps"] for r in ran.rows("client") if r["round"] == 3} == {9}


def test_past_the_target_a_client_sits_out(world: World, tmp_path: Path) -> None:
    """A run that is given a round more than was planned: σ stays, nobody trains in it, the metrics
    say why, and neither ε nor the model moves."""
    federate(world, tmp_path, "fedit", **{**REAL, "run__rounds": 2})
    ran = federate(world, tmp_path, "fedit", resume=True, **{**REAL, "run__rounds": 3})
    assert ran.row(3)["clients"] == 0
    assert set(ran.row(3)["failed"]) == set(ROWS)
    assert all("privacy budget is spent" in why for why in ran.row(3)["failed"].values())
    assert spent(ran, 3) == spent(ran, 2)
    assert same(ran.state(3), ran.state(2))


def test_a_lost_disk_is_no_new_budget(world: World, tmp_path: Path) -> None:
    """A client whose account is gone takes the server's word for what it has spent."""
    with pytest.raises(Crash):
        federate(world, tmp_path, "fedit", watch=crash_at(3, "train"), **REAL)
    accounts = list(tmp_path.glob("run/clients/**/privacy.json"))
    assert len(accounts) == 3
    for account in accounts:
        account.unlink()
    ran = federate(world, tmp_path, "fedit", resume=True, **REAL)
    assert {r["steps"] for r in ran.rows("client") if r["round"] == 3} == {9}


def test_a_dropped_update_was_spent_all_the_same(world: World, tmp_path: Path) -> None:
    """What arrived and was not used counts: ε is of what was released, not of what was useful."""

    def spoil(parcel):
        name = next(iter(parcel.tensors))
        parcel.tensors[name] = torch.full_like(parcel.tensors[name], math.nan)

    ran = federate(world, tmp_path, "fedit", grid=meddled("train", 1, spoil), **REAL)
    assert list(ran.row(2)["dropped"]) == ["books"]
    assert ran.row(2, "books")["steps"] == 6


def test_other_rows_do_not_change_a_reply_that_was_kept(world: World, tmp_path: Path) -> None:
    """A round that is repeated over rows that have changed meanwhile is answered by what was
    released before: nothing is computed again, with whatever noise, and nothing more is spent."""
    data = tmp_path / "rows.jsonl"
    shutil.copy(world.data, data)
    here = World(world.model, data)
    given = {**REAL, "privacy__epsilon": None, "privacy__noise_multiplier": 1.0}
    with pytest.raises(Crash):
        federate(here, tmp_path, "fedit", watch=crash_at(2, "aggregate"), **given)
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    for row in rows:
        row["text"] = row["text"] + " filler0"
    data.write_text("".join(json.dumps(r) + "\n" for r in rows))
    client_app._resident.clear()  # the process that had read them before is gone
    ran = federate(here, tmp_path, "fedit", resume=True, **given)
    assert {r["steps"] for r in ran.rows("client") if r["round"] == 2} == {6}


@pytest.mark.parametrize("private", [True, False])
def test_a_failure_does_not_quote_rows(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, private: bool
) -> None:
    """What a library or the data's reader says of an error may hold a row: in a private run only
    the kind of error is told. Otherwise it is told in full."""

    def stumble(*_):
        raise ValueError("cannot read 'a patient called Smith'")

    monkeypatch.setattr("clients.participant._assemble", stumble)
    given = {**PRIVATE, "run__rounds": 1} if private else {"run__rounds": 1}
    watch = Watch()
    with pytest.raises(Failed):
        federate(world, tmp_path, "fedit", watch=watch, **given)
    reasons = [why for _, _, _, why in watch.reasons]
    assert len(reasons) == 3 and all("ValueError" in r for r in reasons)
    assert all(("Smith" in r) != private for r in reasons)


@pytest.mark.parametrize("said", [{"steps": math.inf}, {"epsilon": math.nan}, {"delta": None}])
def test_a_senseless_account_stops_nobody(
    world: World, tmp_path: Path, said: dict[str, float | None]
) -> None:
    """A client that tells no budget, or an impossible one, is remembered by what it said before;
    but on its ε, and with that on the run's, there is no bound until it tells it again."""

    def lie(parcel):
        parcel.metrics.update(said)
        parcel.metrics = {k: v for k, v in parcel.metrics.items() if v is not None}

    ran = federate(world, tmp_path, "fedit", grid=meddled("train", 1, lie), **PRIVATE)
    steps = 6 if "epsilon" in said else 3  # what it says of the rest is believed
    assert ran.row(2, "books")["steps"] == steps and ran.row(3, "books")["steps"] == 9
    assert ran.row(2)["clients"] == 3
    assert ran.row(2, "books")["epsilon"] is ran.row(2)["epsilon"] is None
    assert 3.9 < ran.row(3)["epsilon"] <= 4
