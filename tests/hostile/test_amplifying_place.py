"""A method whose `place` makes more of an update than its client sent, under central privacy.

Promise: whatever `place` does, one client moves the sum by C at most, and all that it moves has
noise on it.
"""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedlora.errors import MethodError
from fedlora.guard import placed
from fedlora.strategy import Client, Round, Strategy, Update
from fedlora.tensors import Tensors
from tests.federation import World, federate, meddled
from tests.hostile import plugins

CLIP, CLIENTS = 0.5, 3
CENTRAL = {
    "privacy__mode": "central",
    "privacy__epsilon": 20.0,
    "privacy__clip": CLIP,
    "privacy__insecure_seed": 3,  # the same noise in two runs, whose difference is without it
    "run__rounds": 1,
}


@pytest.mark.parametrize("method", ["fedit", "fslora", "tests.hostile.plugins:Amplifying"])
def test_one_client_moves_the_sum_by_its_clip(world: World, tmp_path: Path, method: str) -> None:
    """Two runs that differ in what one client sends, of which one is blown up and turned round:
    before they are divided by q K = 3, their sums are 2 C apart at most."""

    def blow_up(parcel):
        parcel.tensors = {k: -100 * t for k, t in parcel.tensors.items()}

    as_it_was = federate(world, tmp_path / "a", method, **CENTRAL)
    turned = federate(
        world, tmp_path / "b", method, grid=meddled("train", 1, blow_up, 1), **CENTRAL
    )
    one, other = as_it_was.state(1), turned.state(1)
    apart = math.hypot(*(float((t.double() - other[k].double()).norm()) for k, t in one.items()))
    assert 0 < CLIENTS * apart <= 2 * CLIP * (1 + 1e-4)


@pytest.mark.parametrize("name", ["Remembering", "Residual"])
def test_nothing_of_an_update_goes_where_no_noise_is(
    world: World, tmp_path: Path, name: str
) -> None:
    """Memory and residuals that a `place` makes of an update are refused, by name."""
    with pytest.raises(MethodError, match=rf"{name}\.place returned .*noise covers"):
        federate(world, tmp_path, f"tests.hostile.plugins:{name}", **CENTRAL)


def test_what_is_not_finite_counts_as_nothing(world: World, tmp_path: Path) -> None:
    """Else it would spoil the model, and so tell that its client was in."""
    ran = federate(world, tmp_path, "tests.hostile.plugins:Overflowing", **CENTRAL)
    assert all(t.isfinite().all() for t in ran.state(1).values())


class Any(Strategy):
    """Places what it is told to."""

    factor: float
    adds: float
    leaves_out: bool

    def place(self, update: Update, state: Tensors, round: Round) -> Tensors:
        found = {k: self.factor * t + self.adds for k, t in update.tensors.items()}
        return dict(list(found.items())[self.leaves_out :])


numbers = st.floats(width=32, allow_nan=True, allow_infinity=True)


@given(factor=numbers, adds=numbers, leaves_out=st.booleans(), seed=st.integers(0, 99))
def test_no_place_goes_past_the_clip(
    factor: float, adds: float, leaves_out: bool, seed: int
) -> None:
    """For any affine map, also into infinity and nothing, and where tensors are left out."""
    draw = torch.Generator().manual_seed(seed)
    start = {"a.A": torch.randn(4, 6, generator=draw), "a.B": torch.randn(5, 4, generator=draw)}
    tensors = {k: t + torch.randn(t.shape, generator=draw) for k, t in start.items()}
    method = Any.model_construct(factor=factor, adds=adds, leaves_out=leaves_out)
    update = Update(Client("a", 4, 1.0), tensors, start, 1.0)
    found = placed(method, update, start, Round(1), start, CLIP)
    assert found.keys() == start.keys()
    change = math.hypot(*(float((t.double() - start[k].double()).norm()) for k, t in found.items()))
    assert change <= CLIP * (1 + 1e-5)


def test_an_amplifying_method_is_one_of_these() -> None:
    """Without the clip its step is ten times its client's."""
    start = {"a.A": torch.zeros(2, 3)}
    update = Update(Client("a", 2, 1.0), {"a.A": torch.ones(2, 3)}, start, 1.0)
    assert float(placed(plugins.Amplifying(), update, start, Round(1))["a.A"].max()) == 10
