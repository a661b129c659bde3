"""Promise: one row moves what a step releases by C at most, in floating point too.

A server that chooses the adapter makes a model that is all amplification: what the length of one
row changes in the last bits of the others' gradients, by the shapes of a pass, becomes other
gradients altogether, and the sum moves by many times what clipping allows.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, RecordDict

from clients import app
from fedlora.config import Train
from fedlora.config.privacy import Privacy
from fedlora.evaluation import evaluate
from fedlora.privacy import steady, training
from fedlora.privacy.accounting import Mechanism
from fedlora.resident import Resident
from tests.clients.nodes import Owned
from tests.federation import World, make
from tests.hostile.server import Server

SCALE = 1e7  # of s·B·A, which drowns the frozen weights
PRIVATE = {"privacy__noise_multiplier": 1.0, "data__holdout": 0.0, "privacy__statistics": False}


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A model without dropout, as decoders are."""
    return make(tmp_path_factory.mktemp("still"), dropout=0.0)


def resident(still: World, root: Path, long: bool) -> Resident:
    """An owner's node in a private run; of its rows the last is short, or long."""
    owned = Owned(still, root)
    server = Server(still, owned, {}, **PRIVATE)
    file = Path(server.node["data"])
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[-1]["text"] = " ".join([rows[-1]["text"]] * (3 if long else 1))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    app.forget()
    return app.resident(Context(1, 1, server.node, RecordDict(), server.flat()))


def moved(own: Resident, seed: int, fixed: bool) -> dict[str, torch.Tensor]:
    """The sum of clipped gradients of all rows, by a step without noise, in units of C."""
    adapter, rows = own.adapter, own.encoded("books", "train")
    draw = torch.Generator().manual_seed(seed)
    view = {k: torch.randn(t.shape, generator=draw) for k, t in adapter.initial().items()}
    own.load(view, SCALE)
    settings = Train(steps=1, optimizer="sgd", lr=1.0, batch_size=len(rows))
    given = Privacy(noise_multiplier=1.0, statistics=False, physical_batch=128)
    training.train(
        own.task,
        adapter,
        adapter.parts,
        rows,
        settings,
        given,
        Mechanism(0.0, 1.0, 1e-3),
        bytes(32),
        steady=fixed,
    )
    after = adapter.read(adapter.parts)
    return {k: (view[k].double() - t.double()) * len(rows) for k, t in after.items()}


@pytest.mark.parametrize("fixed", [True, False])
def test_one_longer_row_moves_the_sum_by_its_own_part(
    still: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fixed: bool
) -> None:
    """The same rows but for the length of one: at most 2 C apart, as a row in place of another.
    All in one pass, padded to the longest, they are further: else this would show nothing."""
    monkeypatch.setattr(training, "_passes", lambda _, drawn, *__: [(drawn, len(drawn))])
    assert resident(still, tmp_path / "x", True).hides
    worst = 0.0
    for seed in range(3):
        sums = [
            moved(resident(still, tmp_path / f"{seed}{long}", long), seed, fixed)
            for long in (False, True)
        ]
        apart = sum(float((sums[0][k] - t).square().sum()) for k, t in sums[1].items()) ** 0.5
        worst = max(worst, apart)
    assert worst <= 2 * (1 + 1e-3) if fixed else worst > 4


def test_a_node_trains_and_scores_by_such_passes(
    still: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a private run over an owner's rows, and there alone."""
    seen: list[int] = []
    cut = steady.passes

    def counted(*given: Any) -> Any:
        found = list(cut(*given))
        seen.extend(len(rows) for rows, _ in found)
        return found

    monkeypatch.setattr("fedlora.privacy.training.passes", counted)
    monkeypatch.setattr("fedlora.evaluation.alone", counted)
    owned = Owned(still, tmp_path)
    private = {**PRIVATE, "data__holdout": 0.2, "privacy__epsilon": 3.0}
    server = Server(still, owned, {}, **private)
    for purpose in ("train", "evaluate"):
        seen.clear()
        assert server.order(purpose=purpose, tag=f"x-{purpose}").facts["status"] == "ok"
        assert set(seen) == {steady.CORE}
    seen.clear()
    plain = Server(still, owned, {}, data__holdout=0.2)
    assert plain.order(experiment="plain").facts["status"] == "ok" and not seen


def test_every_row_is_scored_once(still: World, tmp_path: Path) -> None:
    """Rows that are there twice count once: the score is that of other passes."""
    own = resident(still, tmp_path, True)
    rows = own.encoded("books", "train")
    own.load({}, 1.0)
    one, other = (evaluate(own.task, own.adapter.model, rows, steady=s) for s in (True, False))
    assert one.rows == other.rows and one.score == pytest.approx(other.score, abs=0.02)
    assert one.loss == pytest.approx(other.loss, rel=1e-4)
