"""Promise: ε is never understated. Where it is infinite or unknown it is said that there is no
bound, wherever people read it; numbers are rounded up."""

import csv
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message
from hypothesis import given
from hypothesis import strategies as some

import strategies
from fedlora import report, settings, tables, wire
from fedlora.page.collect import read
from fedlora.page.html import page
from fedlora.privacy.accounting import epsilon
from fedlora.tracking.series import Series
from fedlora.wire import Parcel
from server.card import card
from server.promise import promise
from server.roster import Member, Roster
from server.spending import largest, note
from simulations import compare
from tests.federation import Meddler, Ran, Watch, World, federate, meddled

SHORT = {"run__rounds": 2, "train__steps": 2, "data__holdout": 0.2}
SIGMA = {**SHORT, "privacy__noise_multiplier": 2.0}
TARGET = {**SHORT, "privacy__epsilon": 4.0}
GIVEN = {"train": {"steps": 2, "batch_size": 8}, "privacy": {"noise_multiplier": 1.0}}
CONFIG, _ = settings.resolve(GIVEN, strategies.load)
FILMS, SHOPS = 2, 3  # shops has the fewest rows, and spends most


def everywhere(ran: Ran) -> dict[str, str]:
    """The run's ε in all the places where people read it."""
    rows = report.load(ran.run.metrics)
    table = report.rounds_table(rows)
    (column,) = [c for c in table.columns if c.header == "ε"]
    found = compare.result("fedit", compare.rounds("fedit", ran.run), ran.config, 1)
    (cells,) = tables.cells([found])
    tables.write([found], ran.run.path)
    with (ran.run.path / "comparison.csv").open() as file:
        (line,) = csv.DictReader(file)
    assert type(found).read(found.dump()) == found
    return {
        "table": str(list(column.cells)[-1]),
        "comparison": cells[1][cells[0].index("ε")],
        "csv": line["epsilon"],
        "promise": promise(rows, {"mode": "local", "accountant": "rdp", "insecure_seed": "null"})[
            0
        ],
        "card": card(ran.run, ran.strategy),
        "page": page([read(ran.run)], "one"),
        "tracked": str([*Series().add(rows)][-1][1]["round/epsilon"]),
    }


def no_bound(ran: Ran) -> None:
    """That there is none is said, and nothing that looks like one."""
    said = everywhere(ran)
    assert said.pop("table") == said.pop("comparison") == report.UNBOUNDED
    assert said.pop("csv") == said.pop("tracked") == "inf"
    assert "unknown or infinite" in said["promise"] and "unknown or infinite" in said["card"]
    assert report.UNBOUNDED in said["page"]
    assert not any("0.00" in text or "ε ≤" in text for text in (said["promise"], said["card"]))


def test_next_to_no_noise_has_no_bound(world: World, tmp_path: Path) -> None:
    """σ = 5e-4 has an infinite ε, which does not travel as a number."""
    ran = federate(world, tmp_path, "fedit", **{**SHORT, "privacy__noise_multiplier": 5e-4})
    assert ran.row(2)["clients"] == 3 and ran.row(2)["epsilon"] is None
    assert all(r["epsilon"] is None for r in ran.rows("client"))
    no_bound(ran)


@pytest.mark.parametrize(
    "lie",
    [
        lambda m: m.clear(),
        lambda m: m.pop("epsilon"),
        lambda m: m.update(epsilon=0.0),
        lambda m: m.update(epsilon=-1.0),
        lambda m: m.update(epsilon=m["epsilon"] / 2),
        lambda m: m.update(epsilon=math.nan, steps=0.0),
        lambda m: m.update(delta=0.0),
        lambda m: m.update(sample_rate=7.0),
    ],
)
def test_a_client_that_says_nothing_or_nonsense(
    world: World, tmp_path: Path, lie: Callable[[dict[str, float]], Any]
) -> None:
    """Its ε is unknown and with that the run's, and not 0 or the others'."""
    grid = meddled("train", FILMS, lambda p: lie(p.metrics), 1)
    ran = federate(world, tmp_path, "fedit", grid=grid, **{**SIGMA, "run__rounds": 1})
    assert ran.row(1)["epsilon"] is None
    assert ran.row(1, "films")["epsilon"] is None and ran.row(1, "books")["epsilon"] > 0
    if lie.__code__.co_names == ("clear",):
        no_bound(ran)


def failing(rounds: set[str], answer: Parcel) -> Meddler:
    def meddle(reply: Message) -> Message:
        about = reply.metadata
        if (about.message_type, about.src_node_id) == ("train", SHOPS) and about.group_id in rounds:
            reply.content = wire.pack(answer)
        return reply

    return Meddler(meddle)


def test_a_client_that_failed_may_have_spent_all_the_same(world: World, tmp_path: Path) -> None:
    """Its reply was lost, or it broke down after it had paid: what a round costs is added, up to
    the target where there is one; one that was never heard of has no bound without a target. A
    client that sits out for want of budget spent nothing."""
    broken, out = Parcel({"status": "error", "reason": "no"}), Parcel({"status": "spent"})
    lost = federate(world, tmp_path / "1", "fedit", grid=failing({"2"}, broken), **SIGMA)
    shops = lost.row(1, "shops")
    whole = [(shops["noise_multiplier"], shops["sample_rate"], 4)]
    at_most = epsilon(whole, shops["delta"])
    said = max(r["epsilon"] for r in lost.rows("client"))
    assert lost.row(2)["epsilon"] == pytest.approx(at_most) and at_most > said
    never = federate(world, tmp_path / "2", "fedit", grid=failing({"1", "2"}, broken), **SIGMA)
    assert never.row(2)["epsilon"] is None
    target = federate(world, tmp_path / "3", "fedit", grid=failing({"1"}, broken), **TARGET)
    assert target.row(1)["epsilon"] == 4.0 and target.row(2)["epsilon"] < 4.0
    sits = federate(world, tmp_path / "4", "fedit", grid=failing({"2"}, out), **SIGMA)
    assert sits.row(2)["epsilon"] == max(r["epsilon"] for r in sits.rows("client"))


def less(reply: Message) -> Message:
    """From round 2 on every client claims less than it spent, in itself consistent."""
    if reply.metadata.message_type == "train" and reply.metadata.group_id != "1":
        parcel = wire.unpack(reply.content)
        said = parcel.metrics | {"noise_multiplier": 50.0, "steps": 1.0}
        said["epsilon"] = epsilon([(50.0, said["sample_rate"], 1)], said["delta"]) + 1e-6
        parcel.metrics = said
        reply.content = wire.pack(parcel)
    return reply


def test_an_account_never_shrinks(world: World, tmp_path: Path) -> None:
    """A client may put an older account in place of its own, or claim more noise: the worse of what
    it said counts, and each round in which it was asked since."""
    ran = federate(world, tmp_path, "fedit", grid=Meddler(less), **{**SIGMA, "run__rounds": 3})
    shops = ran.row(1, "shops")
    truth = [(shops["noise_multiplier"], shops["sample_rate"], 6)]
    assert ran.row(3)["epsilon"] == pytest.approx(epsilon(truth, shops["delta"]))
    assert [r["epsilon"] for r in ran.rows()] == sorted(r["epsilon"] for r in ran.rows())


@pytest.mark.parametrize(("given", "quiet"), [(SIGMA, "23"), (SIGMA, "123"), (TARGET, "23")])
def test_a_lost_disk_hides_no_round(
    world: World, tmp_path: Path, given: dict[str, Any], quiet: str
) -> None:
    """A client trains, its answers are lost, and then its disk: the server, which does not know
    whether it paid, tells it of all rounds in which it was asked, whether or not it ever said
    anything; and no more than a run can have, which it would not believe."""

    def lose(number: int, phase: str) -> None:
        if (number, phase) == (4, "train"):
            for path in (tmp_path / "run" / "clients").iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    grid = failing(set(quiet), Parcel({"status": "error", "reason": "no"}))
    last = {**given, "run__rounds": 4}
    ran = federate(world, tmp_path, "fedit", grid=grid, watch=Watch(lose), **last)
    shops = ran.row(4, "shops")
    assert ran.row(4)["clients"] == 3 and shops["steps"] == 8
    whole = epsilon([(shops["noise_multiplier"], shops["sample_rate"], 8)], shops["delta"])
    assert shops["epsilon"] == pytest.approx(whole)
    assert ran.row(4)["epsilon"] >= shops["epsilon"]


ACCOUNTS = some.tuples(some.sampled_from([0.5, 1.0, 50.0]), some.integers(1, 12))


@given(ACCOUNTS, some.lists(some.one_of(some.just(None), ACCOUNTS), max_size=6))
def test_whatever_it_says_later_epsilon_never_falls(
    first: tuple[float, int], later: list[tuple[float, int] | None]
) -> None:
    """Accounts that are consistent, in any order, with failures between them; and ε is that of
    every round in which it was asked, at least, at the σ that it said at first."""
    member, roster, before = Member(0, 40, 4, 2.0), Roster(), 0.0
    roster.members["it"] = member
    for number, said in enumerate([first, *later], 1):
        metrics: dict[str, float] = {}
        if said:
            metrics = {"noise_multiplier": said[0], "steps": float(said[1]), "sample_rate": 0.2}
            metrics |= {"delta": 0.01, "epsilon": epsilon([(said[0], 0.2, said[1])], 0.01)}
        note(member, metrics, "ok" if said else "error", CONFIG)
        now = largest(roster, CONFIG)["epsilon"]
        assert now >= before and now >= epsilon([(first[0], 0.2, 2 * number)], 0.01)
        before = now * (1 - 1e-9)


def test_the_bound_holds_for_every_client(world: World, tmp_path: Path) -> None:
    """The largest ε goes with the largest δ: clients of fewer rows have a larger one."""
    ran = federate(world, tmp_path, "fedit", **SIGMA)
    clients = [r for r in ran.rows("client") if r["round"] == 2]
    assert ran.row(2)["epsilon"] == max(r["epsilon"] for r in clients)
    assert ran.row(2)["delta"] == max(r["delta"] for r in clients)


@given(some.floats(1e-12, 0.9), some.floats(0, 1e6))
def test_numbers_are_rounded_up(delta: float, epsilon: float) -> None:
    """δ as well as ε, and by less than one of the last digit."""
    shown = float(report.upward(delta))
    assert delta <= shown <= 1.1 * delta * (1 + 1e-9)
    assert epsilon <= float(report.spent(epsilon)) < epsilon + 0.01 + 1e-9


@given(some.dictionaries(some.sampled_from(["epsilon", "delta", "noise_multiplier", "sample_rate",
                                            "steps"]), some.floats(-1, 1e9)))  # fmt: skip
def test_whatever_a_client_says_is_no_smaller_than_what_follows(metrics: dict[str, float]) -> None:
    """An ε that is believed is at least that of the rest that it said; and it is JSON."""
    from server.metrics import sane

    member = Member(0, 40, 4, 2.0)
    note(member, sane(metrics, 40, 0.1), "ok", CONFIG)
    json.dumps(member.spent, allow_nan=False)
    if (said := member.spent["epsilon"]) is not None:
        sigma, rate, steps, delta = (
            metrics[k] for k in ("noise_multiplier", "sample_rate", "steps", "delta")
        )
        assert said >= epsilon([(sigma, rate, int(steps))], delta) * (1 - 1e-6)
