"""A client's private releases: when the same noise may be used again, and an owner's account."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import strategies
from clients import private
from clients.passes import conclude
from clients.private import release_key
from clients.store import Store
from fedlora import settings
from fedlora.errors import UserError
from fedlora.orders import Order
from fedlora.privacy.accounting import epsilon
from fedlora.privacy.budget import Spent
from fedlora.privacy.ledger import Ledger
from fedlora.resident import Node, Resident
from fedlora.stacking import Member
from fedlora.wire import Parcel
from tests.clients.nodes import Owned
from tests.federation import Ran, Watch, World, federate

ORDER = Order(
    experiment="e",
    round=2,
    purpose="train",
    client="books",
    rank=4,
    scale=2.0,
    examples=60,
    tag="0002-0",
    basis="",
    fingerprint="",
    own=0,
    drop=[],
    tails=[],
    planned=3,
    spent=[],
)
TENSORS = {"layer.A": torch.ones(2, 3)}


def resident(world: World, root: Path, **given: object) -> Resident:
    flat = {k.replace("__", ".", 1): v for k, v in given.items()}
    tree = world.tree(root, {"strategy.name": "fedit", "privacy.epsilon": 3.0, **flat})
    return Resident(*settings.resolve(tree, strategies.load))


def test_a_repeat_has_the_same_key(world: World, tmp_path: Path) -> None:
    """What a restart may change (the order's bookkeeping, the number of rounds, workers) is no
    other release."""
    first = release_key(resident(world, tmp_path), ORDER, TENSORS, "train")
    order = replace(ORDER, tag="other", basis="0001-1", planned=5, spent=[1.0, 0.1, 3.0])
    again = resident(world, tmp_path, run__rounds=9, simulation__workers=3)
    assert release_key(again, order, dict(TENSORS), "train") == first


def test_a_schedule_over_all_rounds_makes_their_number_count(world: World, tmp_path: Path) -> None:
    """Steps of other sizes are another release; over each round they are the same."""
    for over, same in (("federation", False), ("round", True)):
        given = {"train__schedule": "linear", "train__schedule_over": over}
        keys = [
            release_key(resident(world, tmp_path, **given, run__rounds=n), ORDER, TENSORS, "train")
            for n in (5, 9)
        ]
        assert (keys[0] == keys[1]) == same


@pytest.mark.parametrize(
    "given",
    [
        {"train__lr": 0.5},
        {"train__steps": 5},
        {"privacy__clip": 0.5},
        {"adapter__dropout": 0.1},
        {"data__max_length": 8},
        {"strategy__name": "ffa"},
        {"model__name": "another"},
    ],
    ids=str,
)
def test_another_configuration_is_another_release(
    world: World, tmp_path: Path, given: dict[str, object]
) -> None:
    """Whatever the server changes in what is computed, the noise is drawn anew: from two releases
    with the same noise their difference could be read off."""
    first = release_key(resident(world, tmp_path), ORDER, TENSORS, "train")
    assert release_key(resident(world, tmp_path, **given), ORDER, TENSORS, "train") != first


def test_another_order_adapter_or_split_is_another_release(world: World, tmp_path: Path) -> None:
    """So is another round, phase, client, scale, value of a tensor, or set of rows."""
    here = resident(world, tmp_path)
    changed = {"layer.A": TENSORS["layer.A"] + 1e-6}
    found = [
        release_key(here, ORDER, TENSORS, "train"),
        release_key(here, replace(ORDER, round=3), TENSORS, "train"),
        release_key(here, replace(ORDER, purpose="evaluate"), TENSORS, "train"),
        release_key(here, replace(ORDER, client="films"), TENSORS, "train"),
        release_key(here, replace(ORDER, scale=2.5), TENSORS, "train"),
        release_key(here, ORDER, changed, "train"),
        release_key(here, ORDER, TENSORS, "heldout"),
    ]
    assert len(set(found)) == len(found)


CAP = 3.2


def one_run(owned: Owned, root: Path, cap: float | None = CAP, **given: Any) -> Ran:
    """Three private rounds of one owner's rows at ε = 2."""
    limits = {} if cap is None else {"epsilon": cap}
    budget = {"privacy__epsilon": 2.0, "data__holdout": 0.2, **given}
    world = World(Path(owned.nodes["books"]["model"]), owned.server)
    watch, grid = Watch(), owned.grid("books", **limits)
    root.mkdir()
    run = owned.run(owned.server, **budget)
    return federate(world, root, "fedit", grid=grid, watch=watch, **run)


def histories(owned: Owned, ran: Ran) -> list[list[tuple[float, float, int]]]:
    """What the node's ledgers of a run hold, training's and scores'."""
    folder = Path(owned.nodes["books"]["state-dir"]) / f"run-{ran.run.experiment}/client-books"
    names = ("privacy.json", "privacy-heldout.json")
    return [[tuple(e) for e in json.loads((folder / n).read_text())["history"]] for n in names]


def test_an_owners_cap_holds_over_all_runs(world: World, tmp_path: Path) -> None:
    """The second run gets as many rounds as ε of all its steps, and of all that the first did,
    stays below the cap at its own δ; then the client sits out and says whose limit it is."""
    owned = Owned(world, tmp_path)
    first = one_run(owned, tmp_path / "one")
    trained, scored = histories(owned, first)
    assert sum(steps for _, _, steps in trained) == 12  # three rounds of four steps
    second = one_run(owned, tmp_path / "two", run__seed=1)
    rows = [r for r in second.rows("client") if r["noise_multiplier"] and r["steps"]]
    sigma, q, delta = (rows[0][k] for k in ("noise_multiplier", "sample_rate", "delta"))

    def composed(rounds: int) -> float:
        return epsilon([*trained, *scored, (sigma, q, 4 * rounds)], delta)

    fits = max(n for n in range(4) if composed(n) <= CAP)
    assert 0 < fits < 3, "else this shows nothing"
    again, scores = histories(owned, second)
    assert again == [(sigma, q, 4 * fits)]
    assert epsilon([*trained, *scored, *scores], delta) <= CAP
    assert any("owner allows ε = 3.2 over all runs" in why for *_, why in second.watch.reasons)


def test_without_a_cap_runs_do_not_count_together(world: World, tmp_path: Path) -> None:
    """Then each run has the budget that it says."""
    owned = Owned(world, tmp_path)
    for name in ("one", "two"):
        ran = one_run(owned, tmp_path / name, cap=None)
        assert sum(steps for _, _, steps in histories(owned, ran)[0]) == 12


@pytest.fixture
def capped(world: World, tmp_path: Path) -> tuple[Resident, Store]:
    """A node's resident and its store in a run, where another run is whole."""
    file = tmp_path / "books.jsonl"
    lines = world.data.read_text().splitlines()
    file.write_text("".join(x + "\n" for x in lines if json.loads(x)["domain"] == "books"))
    made = resident(world, tmp_path)
    made.node = Node(str(file), "books", cap=CAP)
    other = Ledger(tmp_path / "run-other/client-books/privacy.json")
    other.adopt([(1.0, 0.1, 5)])
    return made, Store(tmp_path, "e", "books")


def release(resident: Resident, store: Store, round: int = 2) -> dict[str, float]:
    """What a round of training tells."""
    order, rows = replace(ORDER, round=round), resident.encoded("books", "train")
    member = Member(resident.adapter.initial(), 2.0, rows)
    talk = private.train(resident, store, order, TENSORS, member, {"A", "B"})

    def failed(e: Exception) -> Parcel:
        raise e

    (found,) = conclude(resident, [talk], failed)
    return found[1]


def test_a_damaged_account_of_another_run_stops_a_release(
    capped: tuple[Resident, Store], tmp_path: Path
) -> None:
    """It is never passed over, nor one that may not be read."""
    release(*capped)
    other = tmp_path / "run-other/client-books/privacy.json"
    other.write_text(other.read_text()[:-9])
    with pytest.raises(UserError, match=r"run-other.*cannot be read"):
        release(*capped, round=3)


def test_a_repeat_costs_nothing_under_a_cap(capped: tuple[Resident, Store], tmp_path: Path) -> None:
    """A round that is done again after a crash is answered though the cap is reached since."""
    told = release(*capped)
    Ledger(tmp_path / "run-other/client-books/privacy-heldout.json").adopt([(0.5, 1.0, 50)])
    assert release(*capped) == told
    with pytest.raises(Spent, match="owner allows"):
        release(*capped, round=3)


def test_other_clients_accounts_are_theirs(capped: tuple[Resident, Store], tmp_path: Path) -> None:
    """Another client of the same state directory has rows of its own."""
    Ledger(tmp_path / "run-other/client-films/privacy.json").adopt([(0.1, 1.0, 50)])
    release(*capped)


def test_a_run_keeps_its_division_of_the_rows(capped: tuple[Resident, Store]) -> None:
    """Under another seed what was trained on would be held out, and paid for from its budget."""
    release(*capped)
    first, store = capped
    run = first.config.run.model_copy(update={"seed": 1})
    other = Resident(first.config.model_copy(update={"run": run}), first.strategy, first.node)
    with pytest.raises(UserError, match="not those that this run began with"):
        release(other, store)
