"""When an order is the same one again."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import strategies
from clients.once import digest
from fedlora import settings
from fedlora.config import Config
from fedlora.orders import Order
from tests.federation import World
from tests.hostile.server import ORDER

TENSORS = {"layer.A": torch.ones(2, 3)}


def config(world: World, root: Path, **given: object) -> Config:
    flat = {k.replace("__", ".", 1): v for k, v in given.items()}
    tree = world.tree(root, {"strategy.name": "fedit", "privacy.epsilon": 3.0, **flat})
    return settings.resolve(tree, strategies.load)[0]


def test_what_others_do_does_not_make_it_another(world: World, tmp_path: Path) -> None:
    """What the server expects and knows, the number of rounds, workers."""
    first = digest(config(world, tmp_path), ORDER, TENSORS)
    order = replace(ORDER, planned=5, spent=[1.0, 0.1, 3.0])
    again = config(world, tmp_path, run__rounds=9, simulation__workers=3)
    assert digest(again, order, dict(TENSORS)) == first


def test_a_schedule_over_all_rounds_makes_their_number_count(world: World, tmp_path: Path) -> None:
    """Steps of other sizes make another update; over each round they are the same."""
    for over, same in (("federation", False), ("round", True)):
        given = {"train__schedule": "linear", "train__schedule_over": over}
        made = [config(world, tmp_path, **given, run__rounds=n) for n in (5, 9)]
        assert (digest(made[0], ORDER, {}) == digest(made[1], ORDER, {})) == same


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
        {"run__seed": 1},
        {"run__wire": "bf16"},
    ],
    ids=str,
)
def test_another_configuration_is_another_order(
    world: World, tmp_path: Path, given: dict[str, object]
) -> None:
    """Whatever changes what is computed."""
    one, other = config(world, tmp_path), config(world, tmp_path, **given)
    assert digest(one, ORDER, TENSORS) != digest(other, ORDER, TENSORS)


def test_another_fact_or_value_is_another_order(world: World, tmp_path: Path) -> None:
    """Each of an order's facts, and each value, name and shape of its tensors."""
    here = config(world, tmp_path)
    orders: list[Order] = [
        ORDER,
        replace(ORDER, experiment="f"),
        replace(ORDER, round=3),
        replace(ORDER, purpose="evaluate"),
        replace(ORDER, client="films"),
        replace(ORDER, scale=2.5),
        replace(ORDER, own=1),
        replace(ORDER, server_rows=True),
        replace(ORDER, basis="0001-1"),
        replace(ORDER, drop=["x"]),
    ]
    tensors = [{"layer.A": TENSORS["layer.A"] + 1e-6}, {"layer.B": TENSORS["layer.A"]}, {}]
    found = [digest(here, order, TENSORS) for order in orders]
    found += [digest(here, ORDER, changed) for changed in tensors]
    assert len(set(found)) == len(found)
