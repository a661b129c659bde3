"""The benchmark of a round's overhead: whole rounds of everybody, and all that crosses counted."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fedlora.optimizers import Turn
from fedlora.resident import Resident
from fedlora.tensors import select
from fedlora.training import fresh
from simulations.benchmarks import overhead, weight
from simulations.benchmarks.overhead import CLIENTS, Clock, Round, configured
from simulations.benchmarks.weight import Weight
from tests.federation import same


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Rows for three clients."""
    folder = tmp_path_factory.mktemp("overhead")
    overhead.write_rows(folder, 3)
    yield folder


def test_every_trained_number_moves(folder: Path) -> None:
    """The model of the benchmark runs none of its frozen layers, and yet all of the adapter, head
    included, is trained, as it must be for its messages to be those of a real round."""
    given = {"clients": 3, "rounds": 2, "workers": 0}
    resident = Resident(*configured(folder, "moves", "FedIT", **given))
    adapter, rows = resident.adapter, resident.encoded(resident.federation.clients[0], "train")
    adapter.trainable(adapter.parts)
    updater = fresh(adapter, adapter.parts, resident.config.train, 2, Turn())
    for _ in range(2):  # B begins as zero, and A's gradient with it
        batch = resident.task.batch(rows, range(len(rows)))
        resident.task.losses(adapter.model, batch).sum().backward()
        updater.step()
    moved = select(adapter.live(), adapter.parts)
    assert sum(t.numel() for t in moved.values()) == 74_498
    assert not any(torch.equal(t, adapter.initial()[k]) for k, t in moved.items())


def test_messages_are_weighed_whole(folder: Path) -> None:
    """Each way, against what is said to cross, head included where the method sends it: what they
    have beside it is at most 1 %."""
    given = {"clients": 3, "rounds": 2, "workers": 0}
    found = {
        (method, way.way): way
        for method in weight.SENDS
        for way in weight.weigh(
            method, 8, *configured(folder, f"{method}-weighed", method, **given), Clock()
        )
    }
    assert found["FedIT", "up"].numbers == 4 * 74_498
    assert found["FedSA", "down"].numbers == 4 * 36_864
    for method in weight.SENDS:
        both = [found[method, way] for way in ("up", "down")]
        assert all(w.ratio > 1 for w in both)
        assert sum(w.messages for w in both) <= 1.01 * sum(w.numbers for w in both)


def test_who_is_left_out_ends_the_benchmark() -> None:
    """A round of fewer clients is a cheaper round."""
    with pytest.raises(RuntimeError, match="round 2, train: c: late"):
        Clock().client(2, "train", "c", None, "late")
    Clock().client(2, "train", "c", 0.5)


def test_targets_are_held_against_medians_and_both_ways() -> None:
    """Of the first number of workers; of both ways' bytes together."""
    rounds = {
        (m, w): [Round(ms, 0.3, {}) for ms in (14.0, 14.9 if w == 2 else 99.0, 99.0)]
        for m in overhead.METHODS
        for w in overhead.WORKERS
    }
    sent = [
        Weight(m, way, 1000 * ratio, 1000)
        for m in weight.SENDS
        for way, ratio in (("up", 1.0), ("down", 1.018 if m == "FFA" else 1.022))
    ]
    assert [t["met"] for t in overhead.targets(rounds, sent)] == [True] * 3 + [False, True, False]


def test_it_says_everything_it_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every method and number of workers in the tables and in JSON, beside the targets."""
    spans = {
        "server": {"encode": 1.0, "wait": 2.0},
        "worker-0": {"optimizer": 3.0, "evaluate": 1.0},
        "worker-1": {"optimizer": 1.0},
    }

    def measured(*_: object) -> dict[tuple[str, int], list[Round]]:
        both = [(m, w) for m in overhead.METHODS for w in overhead.WORKERS]
        return {key: [Round(7.0, 0.3, spans)] for key in both}

    monkeypatch.setattr(overhead, "measure", measured)
    sent = [Weight(m, "up", 2, 2) for m in weight.SENDS]
    monkeypatch.setattr(overhead, "weights", lambda *_: sent)
    path = tmp_path / "found.json"
    overhead.main(["--quick", "--json", str(path)])
    found, told = json.loads(path.read_text()), capsys.readouterr().out
    times, where, _ = found["tables"]
    assert times["rows"][0] == ["FedIT", "2", "7.0 (7.0–7.0)", "4.0", "0.30", "1"]
    assert ["optimizer", *["0.00", "2.00"] * 3] in where["rows"]
    assert all(len(r) == len(t["columns"]) for t in found["tables"] for r in t["rows"])
    assert found["benchmark"] == "overhead" and "to reach" in told
    assert len(found["raw"]["rounds"]) == 6 and found["targets"][0]["measured"] == "7.0"


def test_worker_processes_know_the_task(folder: Path) -> None:
    """They are told the method's name alone; a round is timed from commit to commit."""
    config, strategy = configured(folder, "timed", "FedSA", clients=3, rounds=2, workers=1)
    (found,) = overhead.timed(config, strategy)
    assert set(found.spans) == {"server", "worker-0"} and CLIENTS == 20
    assert {"forward and backward", "optimizer", "store"} <= set(found.spans["worker-0"])
    assert found.milliseconds >= found.passes > 0
    again = overhead.timed(*configured(folder, "inline", "FedSA", clients=3, rounds=2, workers=0))
    one, other = (
        load_file(folder / "runs" / name / "round-0002" / "state.safetensors")
        for name in ("timed", "inline")
    )
    assert same(one, other) and len(again) == 1
