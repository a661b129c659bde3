"""The server's rows, scored by workers in shares: the same to the bit as by one process."""

import json
import math
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
import torch

from fedlora import evaluation
from fedlora.errors import Failed
from server.score import Rated, Wanted, here, load_global
from simulations.grid import InProcessGrid
from simulations.pool import Chore, Job, Pool
from simulations.shares import Shares, done
from tests.federation import Ran, World, federate

BOTH = Wanted(True, False)


class Workers:
    """Stands for a pool whose workers do their chores here, the last first."""

    def __init__(self, ran: Ran, workers: int) -> None:
        self.ran, self.workers = ran, workers
        self.chores: list[Chore] = []

    def submit(self, chore: Chore) -> None:
        self.chores.append(chore)
        if len(self.chores) == 2 * self.workers:
            for one in self.chores[::-1]:
                found = json.loads(json.dumps(done(self.ran.resident, one.what)))
                one.replies.put((one.number, found))


@pytest.fixture(scope="module")
def ran(world: World, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("shared")
    return federate(world, folder, run__rounds=1, data__test=0.5, train__steps=3)


@pytest.mark.parametrize("workers", [1, 3, 40])
def test_shares_add_up_to_the_same_bits(
    ran: Ran, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever made which pass, and in whatever order they are done; also with more shares than
    passes."""
    monkeypatch.setattr(evaluation.pieces, "CORE", evaluation.pieces.Costs(0, 32))
    rows = len(ran.resident.federation.test)
    load_global(ran.resident, ran.state(1), 1)
    truth = here(ran.resident)(1, BOTH)
    pool: Any = Workers(ran, workers)
    assert truth.score and rows > 20
    assert Shares(pool, ran.run, rows, {})(1, BOTH) == truth


def test_what_went_wrong_ends_the_run(ran: Ran) -> None:
    class Lost:
        workers = 1

        def submit(self, chore: Chore) -> None:
            chore.failed("its worker process ended with exit code -9")

    pool: Any = Lost()
    with pytest.raises(Failed, match="could not be scored: its worker process ended"):
        Shares(pool, ran.run, 1, {})(1, BOTH)


def test_chores_wait_for_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are alike are done in the order in which they came."""
    seen: list[str] = []
    done: SimpleQueue[Any] = SimpleQueue()

    class Pipe:
        def send_bytes(self, data: bytes) -> None:
            about = json.loads(data)["about"]
            seen.append(about["round"] if isinstance(about, dict) else about[0]["round"])

        def recv_bytes(self) -> bytes:
            return b'{"about": {}, "heads": 0, "sizes": []}'

        def close(self) -> None: ...

    class Process:
        def join(self) -> None: ...

        def terminate(self) -> None: ...

    monkeypatch.setattr(Pool, "_start", lambda self: (Process(), Pipe()))
    pool = Pool(1, 1)
    for i in range(3):
        pool.submit(Chore(i, {"round": f"chore {i}"}, done))
        pool.submit(Job([], [{"round": f"job {i}"}], done, 1e12, "1"))
    with pool:
        assert [done.get(timeout=60)[0] for _ in range(3)] == [0, 1, 2]
    assert seen == [f"{kind} {i}" for kind in ("job", "chore") for i in range(3)]


def test_a_run_with_workers_is_scored_by_them(world: World, tmp_path: Path) -> None:
    """Whole processes: the same rows as of a run that scores by itself."""
    plain = federate(world, tmp_path / "plain", run__rounds=1)
    with Pool(2, 1) as pool:
        resident = plain.resident
        clients = len(resident.federation.clients)
        grid = InProcessGrid(resident.config, clients, plain.run.path / "clients", pool)
        rows = len(resident.federation.test)
        rate = Shares(pool, plain.run, rows, grid.context(1))
        found: Rated = rate(1, BOTH)
    row = plain.row(1)
    assert found.score and (found.score.score, found.score.loss) == (row["score"], row["test_loss"])


def test_what_a_model_of_nans_finds_likeliest_is_no_score() -> None:
    """Its largest logit is the first there is, right for as many rows as have that label."""
    found = evaluation.score(torch.tensor([3.0, math.nan, 4.0], dtype=torch.float64), 4)
    assert math.isnan(found.score) and math.isnan(found.loss) and found.rows == 4
