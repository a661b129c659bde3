"""Clients that ask for passes together: whose failure is whose, and who shares with whom."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import strategies
from clients import passes
from clients.asked import Fit, Noise, Rate, Talk
from clients.passes import conclude
from fedlora import settings
from fedlora.optimizers import Turn
from fedlora.orders import answer
from fedlora.privacy.accounting import Mechanism
from fedlora.privacy.entropy import insecure
from fedlora.resident import Resident
from fedlora.stacking import Member
from fedlora.tensors import Tensors
from fedlora.wire import Parcel
from tests.federation import World, make, same

CLIENTS = ("books", "films", "shops")


@pytest.fixture(scope="module")
def shared(world: World, tmp_path_factory: pytest.TempPathFactory) -> Resident:
    """Without dropout, whose masks are others in company."""
    root = tmp_path_factory.mktemp("passes")
    return resident(make(root, dropout=0.0), root)


def resident(world: World, root: Path, **given: object) -> Resident:
    flat = {k.replace("__", ".", 1): v for k, v in given.items()}
    tree = world.tree(root, {"strategy.name": "fedit", "train.optimizer": "sgd", **flat})
    return Resident(*settings.resolve(tree, strategies.load))


def member(resident: Resident, client: str, split: str = "train", **parts: Tensors) -> Member:
    tensors = {**resident.adapter.initial(), **parts.get("tensors", {})}
    return Member(tensors, 2.0, resident.encoded(client, split), (0, "train", client, 1))


def residual(resident: Resident) -> Tensors:
    module, (m, n) = next(iter(resident.adapter.shapes.items()))
    return {f"{module}.P": torch.full((m, 2), 0.1), f"{module}.Q": torch.full((2, n), 0.1)}


def asks(client: str, *requests: Fit | Rate) -> Talk:
    """Asks for one after another, and replies with all that came of them."""
    found = []
    for request in requests:
        found.append((yield request))
    return answer("ok", client=client, found=found)


def excuse(e: Exception) -> Parcel:
    return answer("error", f"{type(e).__name__}: {e}")


def told(parcels: Sequence[Parcel]) -> list[Any]:
    return [p.facts.get("client") or p.facts["reason"] for p in parcels]


def fitted(parcel: Parcel, i: int = 0) -> Tensors:
    return parcel.facts["found"][i].tensors


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """(what, clients) of every stacked pass."""
    found: list[tuple[str, int]] = []

    def wrapped(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(task: Any, adapter: Any, members: Sequence[Member], *more: Any) -> Any:
            found.append((name, len(members)))
            return real(task, adapter, members, *more)

        return call

    for where, name in (
        (passes.stacking, "train"),
        (passes.stacking, "evaluate"),
        (passes.private_stacking, "train"),
    ):
        called = f"{where.__name__.rpartition('.')[0].rpartition('.')[2]} {name}"
        monkeypatch.setattr(where, name, wrapped(called, getattr(where, name)))
    return found


TRAIN, EVALUATE, PRIVATE = "fedlora train", "fedlora evaluate", "privacy train"


def test_what_fails_for_all_is_excused_for_each(
    shared: Resident, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before any pass, as where the size of passes is worked out: nothing gets by the excuse."""

    def fail(_: Resident) -> int:
        raise ValueError("the longest row is …")

    monkeypatch.setattr(Resident, "most", property(fail))
    talks = [asks(c, Rate(member(shared, c, "heldout"), "heldout")) for c in CLIENTS]
    found = conclude(shared, talks, lambda e: answer("error", type(e).__name__))
    assert told(found) == ["ValueError"] * len(CLIENTS)


def test_together_ends_where_each_ends_alone(
    shared: Resident, counted: list[tuple[str, int]]
) -> None:
    """Training, then a score; to rounding. One that is alone takes the plain loop."""

    def talks() -> list[Talk]:
        fit = {c: Fit(member(shared, c), {"A", "B"}) for c in CLIENTS}
        rate = {c: Rate(member(shared, c, "heldout"), "heldout") for c in CLIENTS}
        return [asks(c, fit[c], rate[c]) for c in CLIENTS]

    whole = conclude(shared, talks(), excuse)
    assert counted == [(TRAIN, 3), (EVALUATE, 3)]
    counted.clear()
    alone = [conclude(shared, [talk], excuse)[0] for talk in talks()]
    assert counted == []
    assert told(whole) == told(alone) == [*CLIENTS]
    for one, other in zip(whole, alone, strict=True):
        for name, tensor in fitted(other).items():
            assert (fitted(one)[name] - tensor).abs().max() <= 1e-5 * tensor.abs().max()
        (a, first), (b, second) = one.facts["found"], other.facts["found"]
        assert a.told.loss == pytest.approx(b.told.loss, rel=1e-5)
        assert first.score == second.score and first.rows == second.rows
        assert first.loss == pytest.approx(second.loss, rel=1e-5)


def test_replies_are_in_order_whoever_ends_first(shared: Resident) -> None:
    """One that asks for nothing, one for a pass, one for two."""
    rate = [Rate(member(shared, c, "heldout"), "heldout") for c in CLIENTS]
    talks = [asks("books", rate[0], rate[0]), asks("films"), asks("shops", rate[2])]
    assert told(conclude(shared, talks, excuse)) == [*CLIENTS]
    assert conclude(shared, [], excuse) == []


def test_a_client_that_fails_fails_alone(shared: Resident) -> None:
    """Before it asks for a pass, or with what came of it: the others have theirs."""
    rate = {c: Rate(member(shared, c, "heldout"), "heldout") for c in CLIENTS}

    def early() -> Talk:
        raise ValueError("before")
        yield

    def late() -> Talk:
        yield rate["books"]
        raise ValueError("after")

    found = conclude(shared, [late(), early(), asks("shops", rate["shops"])], excuse)
    assert told(found) == ["ValueError: after", "ValueError: before", "shops"]


def test_a_pass_that_cannot_be_shared_is_taken_one_after_another(
    shared: Resident, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The log has the reason, and the answers are the bits of the plain loop."""

    def talks() -> list[Talk]:
        return [asks(c, Fit(member(shared, c), {"A", "B"})) for c in CLIENTS]

    alone = [conclude(shared, [talk], excuse)[0] for talk in talks()]

    def full(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(passes.stacking, "train", full)
    with caplog.at_level(logging.WARNING, "fedlora.client"):
        found = conclude(shared, talks(), excuse)
    assert "3 clients could not share passes" in caplog.text and "out of memory" in caplog.text
    assert all(same(fitted(a), fitted(b)) for a, b in zip(found, alone, strict=True))


def test_who_cannot_be_loaded_is_told_so_and_the_others_go_on(
    shared: Resident, caplog: pytest.LogCaptureFixture
) -> None:
    """A tensor of a wrong shape spoils the pass for all, so each goes alone, and its own talk may
    make something of the error."""
    name = next(iter(shared.adapter.initial()))
    wrong = Fit(member(shared, "films", tensors={name: torch.ones(1, 1, 1)}), {"A", "B"})

    def answers_it() -> Talk:
        try:
            yield wrong
        except Exception as e:
            return answer("wrong", type(e).__name__)
        raise AssertionError

    right = [asks(c, Fit(member(shared, c), {"A", "B"})) for c in ("books", "shops")]
    found = conclude(shared, [right[0], answers_it(), asks("x", wrong), right[1]], excuse)
    assert told(found)[:2] == ["books", "MethodError"] and told(found)[3] == "shops"
    assert told(found)[2].startswith("MethodError") and name in told(found)[2]
    assert "4 clients could not share passes" in caplog.text


def test_only_who_wants_the_same_shares(shared: Resident, counted: list[tuple[str, int]]) -> None:
    """Other parts, other residuals and other splits are other passes; one alone is none."""
    common = residual(shared)
    requests = [
        Fit(member(shared, "books"), {"A", "B"}),
        Fit(member(shared, "films"), {"B"}),
        Fit(member(shared, "shops"), {"A", "B"}),
        Fit(member(shared, "books", tensors=common), {"A", "B"}),
        Fit(member(shared, "films"), {"B"}),
        Fit(member(shared, "shops", tensors=common), {"A", "B"}),
        Fit(member(shared, "books", tensors=common), {"B"}),
        Rate(member(shared, "books", "heldout"), "heldout"),
        Rate(member(shared, "books", "test"), "test"),
        Rate(member(shared, "films", "heldout"), "heldout"),
    ]
    talks = [asks(str(i), request) for i, request in enumerate(requests)]
    found = conclude(shared, talks, excuse)
    assert told(found) == [str(i) for i in range(len(requests))]
    assert sorted(counted) == [(EVALUATE, 2), *[(TRAIN, 2)] * 3]
    trained = [{k.rpartition(".")[2] for k in fitted(found[i])} for i in range(7)]
    assert trained == [{"A", "B"}, {"B"}, {"A", "B"}, {"A", "B"}, {"B"}, {"A", "B"}, {"B"}]


@pytest.mark.parametrize("engine", [None, "hooks"])
def test_hooks_know_one_clients_gradients_at_a_time(
    world: World, tmp_path: Path, counted: list[tuple[str, int]], engine: str | None
) -> None:
    """So clients that train privately by them go one after another; by copies they share."""
    mine = resident(world, tmp_path, privacy__noise_multiplier=1.0, privacy__engine=engine)
    noises = [Noise(Mechanism(1.0, 0.1, 1e-3), insecure(0, c)) for c in CLIENTS]
    talks = [
        asks(c, Fit(member(mine, c), {"A", "B"}, noise))
        for c, noise in zip(CLIENTS, noises, strict=True)
    ]
    assert told(conclude(mine, talks, excuse)) == [*CLIENTS]
    assert counted == ([] if engine else [(PRIVATE, 3)])


def test_a_schedule_parts_clients_of_other_rounds_or_steps(
    world: World, tmp_path: Path, counted: list[tuple[str, int]]
) -> None:
    """One optimizer moves a stack: those of another round go apart, and in epochs, which the 90, 60
    and 40 rows have unequally many steps of, all where the learning rate decays."""
    turned = replace(member(resident(world, tmp_path), "books"), turn=Turn(2, 3))
    for schedule, stacks in (("constant", [(TRAIN, 2)]), ("linear", [])):
        given = {"train__schedule": schedule, "train__steps": None, "train__warmup": 2}
        here = resident(world, tmp_path, **given)
        members = [turned, member(here, "films"), member(here, "shops")]
        conclude(here, [asks("x", Fit(m, {"B"})) for m in members], excuse)
        assert counted == stacks
        counted.clear()
    even = resident(world, tmp_path, train__schedule="linear")
    conclude(even, [asks(c, Fit(member(even, c), {"B"})) for c in CLIENTS], excuse)
    assert counted == [(TRAIN, 3)]
