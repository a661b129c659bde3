"""A client's private releases, and the account of their owner."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import strategies
from clients import private
from clients.account import LEDGERS, Account
from clients.owner import Owner
from clients.passes import conclude
from clients.store import Store
from fedlora import settings
from fedlora.errors import UserError
from fedlora.orders import Order
from fedlora.privacy.accounting import Mechanism, epsilon
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


def resident(world: World, root: Path, **given: object) -> Resident:
    flat = {k.replace("__", ".", 1): v for k, v in given.items()}
    tree = world.tree(root, {"strategy.name": "fedit", "privacy.epsilon": 3.0, **flat})
    return Resident(*settings.resolve(tree, strategies.load))


CAP = 3.2


def one_run(owned: Owned, root: Path, cap: float | None = CAP, **given: Any) -> Ran:
    """Three private rounds of one owner's rows at ε = 2."""
    limits = {} if cap is None else {"epsilon": cap}
    labels = ["bad", "good"]
    budget = {"privacy__epsilon": 2.0, "data__holdout": 0.2, "data__labels": labels, **given}
    world = World(Path(owned.nodes["books"]["model"]), owned.server)
    watch, grid = Watch(), owned.grid("books", **limits)
    root.mkdir()
    run = owned.run(owned.server, **budget)
    return federate(world, root, "fedit", grid=grid, watch=watch, **run)


def histories(owned: Owned, ran: Ran) -> list[list[tuple[float, float, int]]]:
    """What the node's account has of a run, of training and of scores; its own ledgers agree."""
    state = Path(owned.nodes["books"]["state-dir"])
    folder = state / f"run-{ran.run.experiment}/client-books"
    kept = json.loads((state / "account-books.json").read_text())["spent"][ran.run.experiment]
    for kind, name in LEDGERS.items():
        assert kept.get(kind, []) == json.loads((folder / name).read_text())["history"]
    return [[tuple(e) for e in kept.get(kind, [])] for kind in LEDGERS]


def test_an_owners_cap_holds_over_all_runs(world: World, tmp_path: Path) -> None:
    """The second run gets as many rounds as ε of all its steps, and of all that the first did,
    stays below the cap at the owner's δ; then the client sits out and says whose limit it is."""
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
    assert any("owner allows over all runs" in why for *_, why in second.watch.reasons)


def test_without_a_cap_runs_do_not_count_together(world: World, tmp_path: Path) -> None:
    """Then each run has the budget that it says."""
    owned = Owned(world, tmp_path)
    for name in ("one", "two"):
        ran = one_run(owned, tmp_path / name, cap=None)
        assert sum(steps for _, _, steps in histories(owned, ran)[0]) == 12


def spent(path: Path, sigma: float, steps: int) -> None:
    """Another run's ledger."""
    ledger = Ledger(path)
    ledger.plan(Mechanism(sigma, 0.1, 1e-5))
    ledger.spend(steps)


@pytest.fixture
def capped(world: World, tmp_path: Path) -> tuple[Resident, Store, Account]:
    """A node's resident, its store in a run and its account, where another run is whole."""
    file = tmp_path / "books.jsonl"
    lines = world.data.read_text().splitlines()
    file.write_text("".join(x + "\n" for x in lines if json.loads(x)["domain"] == "books"))
    made = resident(world, tmp_path)
    made.node = Node(str(file), "books")
    spent(tmp_path / "run-other/client-books/privacy.json", 1.0, 5)
    given = {"client": "books", "data": str(file), "epsilon": CAP, "state-dir": str(tmp_path)}
    return made, Store(tmp_path, "e", "books"), Account(tmp_path, Owner.read(given), "books")


def release(resident: Resident, store: Store, account: Account, round: int = 2) -> dict[str, float]:
    """What a round of training tells."""
    order, rows = replace(ORDER, round=round), resident.encoded("books", "train")
    member = Member(resident.adapter.initial(), 2.0, rows)
    talk = private.train(resident, store, order, member, {"A", "B"}, account)

    def failed(e: Exception) -> Parcel:
        raise e

    (found,) = conclude(resident, [talk], failed)
    return found[1]


def test_a_lost_account_is_made_of_the_runs_own_ledgers(
    capped: tuple[Resident, Store, Account],
) -> None:
    """What other runs' ledgers hold counts, of this client alone; one that is damaged, or may not
    be read, stops the release."""
    account = capped[-1]
    spent(account.path.parent / "run-other/client-films/privacy.json", 0.1, 50)
    release(*capped)
    kept = json.loads(account.path.read_text())["spent"]
    assert kept["other"] == {"train": [[1.0, 0.1, 5]]} and kept["e"]["train"]
    account.path.unlink()
    other = account.path.parent / "run-other/client-books/privacy.json"
    other.write_text(other.read_text()[:-9])
    with pytest.raises(UserError, match=r"run-other.*cannot be read"):
        release(*capped, round=3)


def test_a_damaged_account_stops_a_release(capped: tuple[Resident, Store, Account]) -> None:
    """It is never passed over."""
    release(*capped)
    path = capped[-1].path
    path.write_text(path.read_text()[:-9])
    with pytest.raises(UserError, match=r"account-books.*cannot be read"):
        release(*capped, round=3)


def test_the_account_pays_before_the_run_and_for_nothing_that_the_run_cannot(
    capped: tuple[Resident, Store, Account], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the two, the account is the one that has it written down; a run whose own
    budget is spent costs the account nothing."""
    made, _, account = capped

    def paid() -> int:
        return sum(n for _, _, n in json.loads(account.path.read_text())["spent"]["e"]["train"])

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "spend", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            release(*capped)
    assert paid() == 4
    made.config = made.config.model_copy(
        update={"privacy": made.config.privacy.model_copy(update={"epsilon": 0.01})}
    )
    with pytest.raises(Spent, match="privacy budget"):
        release(*capped, round=3)
    assert paid() == 4


def test_a_run_keeps_its_division_of_the_rows(capped: tuple[Resident, Store, Account]) -> None:
    """Under another seed what was trained on would be held out, and paid for from its budget."""
    release(*capped)
    first, *rest = capped
    run = first.config.run.model_copy(update={"seed": 1})
    other = Resident(first.config.model_copy(update={"run": run}), first.strategy, first.node)
    with pytest.raises(UserError, match="not those that this run began with"):
        release(other, *rest)
