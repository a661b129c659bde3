"""A client's private releases: when the same noise may be used again."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import strategies
from clients.private import release_key
from fedlora import settings
from fedlora.orders import Order
from fedlora.resident import Resident
from tests.federation import World

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
    keep=[],
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
