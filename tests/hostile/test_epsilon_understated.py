"""Promise: ε is never understated. Where it is infinite or unknown it is said that there is no
bound, wherever people read it; numbers are rounded up."""

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message
from hypothesis import given
from hypothesis import strategies as some

from fedlora import report, tables, wire
from fedlora.page.collect import read
from fedlora.page.html import page
from fedlora.privacy.accounting import epsilon
from fedlora.tracking.series import Series
from fedlora.wire import Parcel
from server.card import card
from server.promise import promise
from server.roster import Member
from server.spending import note
from simulations import compare
from tests.federation import Meddler, Ran, World, federate, meddled

SHORT = {"run__rounds": 2, "train__steps": 2, "data__holdout": 0.2}
SIGMA = {**SHORT, "privacy__noise_multiplier": 2.0}
TARGET = {**SHORT, "privacy__epsilon": 4.0}
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
    from fedlora.config.privacy import Privacy
    from server.metrics import sane

    member = Member(0, 40, 4, 2.0)
    note(member, sane(metrics, 40, 0.1), "ok", Privacy(noise_multiplier=1.0))
    json.dumps(member.spent, allow_nan=False)
    if (said := member.spent["epsilon"]) is not None:
        sigma, rate, steps, delta = (
            metrics[k] for k in ("noise_multiplier", "sample_rate", "steps", "delta")
        )
        assert said >= epsilon([(sigma, rate, int(steps))], delta) * (1 - 1e-6)
