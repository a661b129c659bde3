"""Promise: what all runs together release of an owner's rows stays within the owner's ε and δ,
whatever a run or the server says (SECURITY.md, docs/privacy.md)."""

import json
import math
import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch

from fedlora import cancel
from fedlora.errors import UserError
from fedlora.privacy import accounting
from fedlora.wire import Parcel
from tests.clients.nodes import Owned
from tests.federation import World
from tests.hostile.server import ORDER, Server

EPSILON = 3.0
ROWS = 73  # of the owner's file
SIGMA, Q = 0.8, 8 / ROWS
PRIVATE = {
    "privacy__noise_multiplier": SIGMA,
    "privacy__statistics": False,
    "data__holdout": 0.0,
    "train__steps": 1,
}


def account(server: Server) -> dict[str, Any]:
    return json.loads((server.state / "account-books.json").read_text())


def answered(server: Server, run: str, most: int, **given: Any) -> int:
    """How many rounds of one run are answered until the first that is not."""
    for number in range(most):
        if server.order(experiment=run, round=number + 1, **given).facts["status"] != "ok":
            return number
    return most


@pytest.mark.parametrize("delta", [None, 1e-3])
def test_a_run_does_not_choose_the_owners_delta(
    world: World, owned: Owned, delta: float | None
) -> None:
    """Runs with δ just below 1/n, at which ε looks small: as many rounds are answered as fit at
    the owner's own δ, 1/(2n) or what the owner says, over two runs."""
    limits = {"epsilon": EPSILON} | ({"delta": delta} if delta else {})
    server = Server(world, owned, limits, **PRIVATE, privacy__delta=0.99 / ROWS)
    total = sum(answered(server, run, 12) for run in ("one", "two"))
    kept = account(server)["delta"]
    assert kept == pytest.approx(delta or 1 / (2 * ROWS))

    def cost(rounds: int, delta: float) -> float:
        return accounting.epsilon([(SIGMA, Q, rounds)], delta)

    assert cost(total, kept) <= EPSILON < cost(total + 1, kept)
    assert cost(total + 1, 0.99 / ROWS) <= EPSILON, "no more would fit: this shows nothing"


def test_a_run_does_not_shrink_the_rows(world: World, owned: Owned) -> None:
    """A single row, of which δ = 1/(2n) is one half: refused before anything is read."""
    server = Server(world, owned, {"epsilon": EPSILON}, **PRIVATE, data__rows=1)
    reply = server.order()
    assert reply.facts["status"] == "error" and "all of its rows" in reply.facts["reason"]
    assert not (server.state / "account-books.json").exists()


def test_the_owner_cannot_change_delta_unseen(world: World, owned: Owned) -> None:
    """A budget keeps the δ that it began with: another one in the settings stops the node."""
    Server(world, owned, {"epsilon": EPSILON}, **PRIVATE).order()
    other = Server(world, owned, {"epsilon": EPSILON, "delta": 1e-9}, **PRIVATE)
    assert other.order(round=2).facts["status"] == "error"


LIES = {
    "a huge number of steps": {"spent": [SIGMA, Q, 1e200]},
    "more steps than the run has": {"spent": [SIGMA, Q, 1e6]},
    "steps below none": {"spent": [SIGMA, Q, -1.0]},
    "half a step": {"spent": [SIGMA, Q, 0.5]},
    "no number": {"spent": [math.nan, Q, 1.0]},
    "no noise at all": {"spent": [1e-9, Q, 1.0]},
    "another sample rate": {"spent": [1.5, 1.0, 1.0]},
    "half a history": {"spent": [1.5]},
    "rounds of nothing": {"planned": 0},
    "more rounds than the run has": {"planned": 10**9},
}


@pytest.mark.parametrize("said", LIES.values(), ids=LIES)
def test_an_account_is_neither_burnt_nor_hung(
    world: World, owned: Owned, said: dict[str, Any]
) -> None:
    """An order whose word on spending is impossible is not followed, ends at once, and leaves the
    owner's account, and other runs, what they were."""
    given = {**PRIVATE, "privacy__noise_multiplier": None, "privacy__epsilon": 2.0}
    server = Server(world, owned, {"epsilon": EPSILON}, **given)
    assert server.order(**said).facts["status"] == "error"
    spent = account(server)["spent"] if (server.state / "account-books.json").exists() else {}
    assert not any(entry for run in spent.values() for entry in run.values())
    assert server.order(experiment="other").facts["status"] == "ok"


def test_what_is_possible_counts_in_its_own_run_alone(world: World, owned: Owned) -> None:
    """All that a run can have spent, said to a node that knows nothing of it: this run's client
    sits out, and another run has the whole budget."""
    server = Server(world, owned, {"epsilon": EPSILON}, **PRIVATE, run__rounds=400)
    assert server.order(spent=[SIGMA, Q, 400.0]).facts["status"] == "spent"
    assert server.order(experiment="other").facts["status"] == "ok"
    assert server.order(round=2).facts["status"] == "spent"


def test_the_servers_word_does_not_replace_an_account(world: World, owned: Owned) -> None:
    """A node that has its own account hears nothing of the server's."""
    server = Server(world, owned, {"epsilon": EPSILON}, **PRIVATE, run__rounds=400)
    assert server.order().facts["status"] == "ok"
    assert server.order(round=2, spent=[SIGMA, Q, 399.0]).facts["status"] == "ok"
    assert account(server)["spent"]["e"]["train"] == [[SIGMA, Q, 2]]


def test_the_servers_word_never_enters_the_account(world: World, owned: Owned) -> None:
    """Nor where the owner sets a budget later, and the account is made of what runs spent."""
    given = {**PRIVATE, "run__rounds": 400}
    open_to_all = Server(world, owned, {}, **given)
    open_to_all.order(spent=[1e-3, Q, 400.0])
    (open_to_all.state / "account-books.json").unlink()
    server = Server(world, owned, {"epsilon": EPSILON}, **given)
    assert server.order(experiment="other").facts["status"] == "ok"
    kept = account(server)["spent"]
    assert kept["e"]["train"] == [[SIGMA, Q, 1]] and kept["other"]["train"] == [[SIGMA, Q, 1]]


def test_rows_stay_divided_though_a_run_is_deleted(world: World, owned: Owned) -> None:
    """Else what was trained on would be held out, with a budget of its own."""
    given = {**PRIVATE, "data__holdout": 0.2, "privacy__epsilon": 2.0}
    server = Server(world, owned, {"epsilon": EPSILON}, **given)
    assert server.order().facts["status"] == "ok"
    shutil.rmtree(server.state / "run-e")
    server.run["run.seed"] = 1
    for purpose in ("train", "evaluate"):
        assert server.order(round=2, purpose=purpose).facts["status"] == "error"


@pytest.mark.parametrize(
    "run",
    [
        {"privacy.clip": 1.5e-27},
        {"privacy.clip": 1e30},
        {"privacy.noise_multiplier": 1e8},
        {"adapter.target_modules": "([a-z0-9.]+)+X"},
    ],
    ids=str,
)
def test_settings_that_break_the_arithmetic_are_refused(
    world: World, owned: Owned, run: dict[str, Any]
) -> None:
    """A clip at the end of fp32's range, noise that no accountant can count, a pattern whose
    search never ends: before anything is loaded."""
    server = Server(world, owned, {"epsilon": EPSILON}, **PRIVATE)
    reply = server.order()
    assert reply.facts["status"] == "ok"
    flat = {**server.flat(), **run}
    assert server.sent(ORDER.facts(), {}, "train", flat).facts["status"] == "error"


def test_what_the_accountant_cannot_compute_is_infinite() -> None:
    """An order at which Opacus gives up counts as no bound, and the others still give one."""
    for sigma in (1e6, 1e8, 1.5e8):
        together = accounting.epsilon([(sigma, Q, 1), (SIGMA, Q, 3)], 1e-3)
        assert accounting.epsilon([(SIGMA, Q, 3)], 1e-3) <= together < math.inf


def test_what_is_told_of_a_spent_budget_is_not_other_runs(world: World, owned: Owned) -> None:
    """Neither numbers of theirs, nor a path of the node."""
    server = Server(world, owned, {"epsilon": 0.9}, **PRIVATE)
    server.order(experiment="one")
    replies = [server.order(experiment="two", round=n) for n in range(1, 9)]
    told = {r.facts["reason"] for r in replies if r.facts["status"] == "spent"}
    (reason,) = told
    assert not any(c.isdigit() for c in reason) and str(server.state) not in reason


def test_the_search_for_noise_ends_and_can_be_cancelled() -> None:
    """No steps, an unreachable target, and a caller who is gone."""
    with pytest.raises(UserError, match="steps"):
        accounting.noise_multiplier(1.0, 1e-5, 0.1, 0)
    with pytest.raises(UserError, match="no noise multiplier"):
        accounting._solved(lambda sigma: 0.0, 1.0, 2.0, 1.0)
    with pytest.raises(UserError, match="no noise multiplier"):
        accounting._solved(lambda sigma: math.inf, 1.0, 2.0, 1.0)
    with cancel.when(lambda: True), pytest.raises(cancel.Cancelled):
        accounting.noise_multiplier(1.0, 1e-5, 0.125, 77)


PLAIN: dict[str, Any] = {"data__holdout": 0.2, "train__steps": 1, "run__rounds": 1}


def test_rounds_are_counted_as_they_are_answered(world: World, owned: Owned) -> None:
    """Thirty-one orders that all say round 1, each a little different, in a plain run: the owner's
    max-rounds are answered, and the rest refused; as many evaluations; in another process too."""
    server = Server(world, owned, {"max-rounds": 3}, **PLAIN)

    def statuses(purpose: str) -> list[str]:
        return [server.order(purpose=purpose, tag=f"x-{i}").facts["status"] for i in range(31)]

    for purpose in ("train", "evaluate"):
        assert statuses(purpose) == ["ok"] * 3 + ["error"] * 28
    assert account(server)["answered"] == {"e": {"train": 3, "evaluate": 3}}
    reply = server.order(tag="x-9")
    assert "max-rounds" in reply.facts["reason"]


def test_new_runs_do_not_begin_anew(world: World, owned: Owned) -> None:
    """A run that calls itself another with each order meets the limit over all runs."""
    server = Server(world, owned, {"max-total-rounds": 3}, **PLAIN)
    replies = [server.order(experiment=f"run-{i}") for i in range(6)]
    assert [r.facts["status"] for r in replies] == ["ok"] * 3 + ["error"] * 3
    assert "max-total-rounds" in replies[-1].facts["reason"]


def test_the_server_does_not_choose_what_counts_as_one(world: World, owned: Owned) -> None:
    """Another word for the stage, a layer that is none, training that calls itself evaluation: an
    error, and not one more answer of another kind."""
    run = {**PLAIN, "strategy__name": "fedsb", "strategy__init": "clients"}
    server = Server(world, owned, {"max-rounds": 2}, **run)
    layer = "bert.encoder.layer.0.attention.self.query"
    for asked in ({"stage": "sum1"}, {"modules": ["elsewhere"]}, {"rows": 10**400}, {"rows": 0}):
        facts = {"modules": [layer], "rows": 4, "stage": "sum", **asked}
        if facts["rows"] < 2**60:
            assert server.say(facts, {}, kind="query.gradients").facts["status"] == "error"
    plain = Server(world, owned, {"max-rounds": 2}, **PLAIN)
    facts = replace(ORDER, purpose="evaluate").facts()
    assert plain.say(facts, {}, kind="train").facts["status"] == "error"
    assert not (plain.state / "account-books.json").exists()


def test_orders_that_come_to_nothing_leave_nothing(world: World, owned: Owned) -> None:
    """A view of a tensor that no adapter has, in ever new runs: neither answered nor kept."""
    server = Server(world, owned, {}, **PLAIN)
    for i in range(3):
        reply = server.order({f"x{i}.A": torch.zeros(1000)}, experiment=f"run-{i}")
        assert reply.facts["status"] != "ok"
    assert not list(server.state.glob("run-*"))


def test_gradients_are_counted_too(world: World, owned: Owned) -> None:
    """Where a run may ask for gradients of rows, a layer's are given no more often than rounds."""
    run = {**PLAIN, "strategy__name": "fedsb", "strategy__init": "clients"}
    server = Server(world, owned, {"max-rounds": 2}, **run)
    asked = {"modules": ["bert.encoder.layer.0.attention.self.query"], "rows": 4, "stage": "sum"}

    def given() -> Parcel:
        return server.say(asked, {}, kind="query.gradients")

    assert [given().facts["status"] for _ in range(4)] == ["ok", "ok", "error", "error"]


def test_the_same_order_again_is_not_counted(world: World, owned: Owned) -> None:
    """A server that ended and goes on costs the owner nothing."""
    server = Server(world, owned, {"max-rounds": 1}, **PLAIN)
    assert [server.order().facts["status"] for _ in range(3)] == ["ok"] * 3


@pytest.mark.parametrize(
    "facts",
    [
        {"experiment": "../../elsewhere"},
        {"experiment": "x" * 300},
        {"tag": "a/b"},
        {"round": -1},
        {"round": True},
        {"purpose": "sell"},
        {"scale": math.inf},
        {"rank": "4"},
        {"drop": [1]},
        {"planned": "many"},
        {"own": 1.5},
    ],
    ids=str,
)
def test_an_order_is_what_it_is_to_be(world: World, owned: Owned, facts: dict[str, Any]) -> None:
    """Facts of another type or out of range are refused before anything is read or written."""
    server = Server(world, owned, {}, **PLAIN)
    whole = server.order().facts
    assert whole["status"] == "ok"
    before = sorted(p for p in server.state.rglob("*"))
    assert server.say({**ORDER.facts(), **facts}, {}, kind="train").facts["status"] == "error"
    assert sorted(p for p in server.state.rglob("*")) == before
