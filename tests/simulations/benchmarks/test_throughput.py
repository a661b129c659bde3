"""Passes are compared over the same rows, each trained on once, in tokens that are real."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

import strategies
from fedlora import settings
from fedlora.adapters import Adapter
from fedlora.config import Config
from fedlora.streams import forked
from simulations.benchmarks import engine, throughput
from simulations.benchmarks.flowertune.model import LABELS, get_model
from simulations.benchmarks.throughput import LIMIT, PLAIN, STACKED, Passes, Setting
from tests.federation import World
from tests.fedlora.tasks.made import classification


@pytest.fixture
def config(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """A tiny federation; the plain loop has the benchmark's model, cut to one layer."""

    def small(rank: int) -> Any:
        model = get_model(rank)
        layers = model.get_base_model().bert.encoder
        layers.layer = layers.layer[:1]
        return model

    monkeypatch.setattr(throughput, "get_model", small)
    tree = world.tree(tmp_path, {"strategy.name": "fedit"})
    return settings.resolve(tree, strategies.load)[0]


@pytest.mark.parametrize("setting", [Setting(1, 8), Setting(2, 2), Setting(4, 1), Setting(3, 4)])
def test_fedlora_trains_on_every_row_once(config: Config, setting: Setting) -> None:
    """One after another and stacked alike, and the tokens are those of the rows alone."""
    passes = Passes(config, "cpu")
    (rows,) = passes.pieces(24, 1)
    lengths = passes.load.encoded.starts[1:] - passes.load.encoded.starts[:-1]
    for contender in (passes.in_turn, passes.stacked):
        passes.load.task.rows = 0
        told = contender(setting, rows)
        assert passes.load.task.rows == 24
        assert told == sum(int(lengths[passes.load.encoded.rows[row]]) for row in rows)


def test_plain_batches_hold_the_same_rows(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row once, with its label, and no wider than the longest of its batch."""
    passes = Passes(config, "cpu")
    (rows,) = passes.pieces(10, 1)
    seen: list[dict[str, torch.Tensor]] = []
    monkeypatch.setattr(throughput, "fit", lambda model, batches, lr: seen.extend(batches))
    assert passes.plain(passes.model, 4, rows) == sum(int(b["attention_mask"].sum()) for b in seen)
    assert [len(b["labels"]) for b in seen] == [4, 4, 2]
    for b in seen:
        assert b["attention_mask"].sum(dim=1).max() == b["input_ids"].shape[1]
    encoded, found, truth = passes.load.encoded, [], []
    for b in seen:
        for ids, mask, label in zip(b["input_ids"], b["attention_mask"], b["labels"], strict=True):
            found.append((tuple(ids[mask.bool()].tolist()), int(label)))
    for row in rows:
        alone = passes.load.task.batch(encoded, [row])
        ids = alone["input_ids"][0][: encoded.length(row)]
        truth.append((tuple(ids.tolist()), int(alone["labels"])))
    assert Counter(found) == Counter(truth)


def test_pieces_are_other_rows(config: Config) -> None:
    """No row is in two pieces, and the same pieces come again."""
    passes = Passes(config, "cpu")
    pieces = passes.pieces(16, 4)
    assert len({row for piece in pieces for row in piece}) == 64
    assert pieces == passes.pieces(16, 4)


@pytest.mark.usefixtures("global_rng_untouched")
def test_the_limit_is_everybodys_yardstick(config: Config) -> None:
    """Shares are of the plain loop, and of fedlora's, in batches of LIMIT; nobody is left out."""
    found = throughput.measure(config, "cpu", [Setting(2, 2)], 8, 1)
    by = {(r.contender, r.batch, r.clients): r for r in found}
    assert {(PLAIN, n, 0) for n in (2, 4, LIMIT)} < by.keys() and (STACKED, 2, 2) in by
    limit, own = by[PLAIN, LIMIT, 0], by[throughput.POOLED, LIMIT, 1]
    assert limit.share == own.own_share == (1, 1, 1)
    for r in found:
        assert r.share.median == pytest.approx(r.speed.median / limit.speed.median)
        assert r.own_share.median == pytest.approx(r.speed.median / own.speed.median)


def test_both_sides_train_the_same_parameters() -> None:
    """The plain model's adapter and head have the shapes that fedlora's have."""
    settings = engine.CONFIG
    with forked(0, "test"):
        plain = get_model(settings.adapter.rank)
    task = classification(settings.model.name, LABELS, settings.data.max_length)
    ours = Adapter(task.model(0), settings.adapter, 0)
    shapes = [p.shape for p in plain.parameters() if p.requires_grad]
    assert Counter(shapes) == Counter(p.shape for p in ours.trainable(ours.parts))
    assert {m.scaling["default"] for m in plain.modules() if hasattr(m, "lora_A")} == {
        ours.scaling.at(ours.scaling.rank)
    }


def test_compiling_pays_or_never_does() -> None:
    """It has paid once what it saved of eager training is as long as it took."""
    saves = throughput.Compiled("cpu", 4, compiling=30.0, eager=4.0, compiled=3.0)
    assert saves.pays_after == 120.0
    assert throughput.Compiled("cpu", 4, 30.0, eager=3.0, compiled=3.5).pays_after == float("inf")
