"""Whole federations whose clients share passes end where those of one client at a time end."""

from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fedlora.tensors import Tensors
from tests.federation import Crash, Ran, World, crash_at, federate, make, same

CASES: dict[str, dict[str, Any]] = {
    "fedit": {},
    "ffa": {},
    "fedex": {},
    "fedsa": {},
    "fedsb": {"adapter__rank": 8},
    "fslora": {"strategy__ranks": [1, 2, 3]},
    "local": {},
    "fedsa vera": {"adapter__kind": "vera", "adapter__rank": 16},
    "fedit dora": {"adapter__dora": True},
    "fedsa dora": {"adapter__dora": True},
    "fedex rslora": {"adapter__rslora": True},
    "fedit epochs": {"train__steps": None, "train__batch_size": 16},
    "fedex adamw": {"train__optimizer": "adamw", "train__lr": 1e-3},
}
# Rounding of fp32 sums in another order, over two rounds of three steps. AdamW divides a gradient
# by its own size: where that is near zero its rounding decides the direction of a whole step.
SGD, ADAMW = 1e-5, 1e-2
BITS = 4 * torch.finfo(torch.float32).eps
SHORT = {"run__rounds": 2, "run__keep": "all", "train__steps": 3}
SLOW = {"train__optimizer": "sgd", "train__lr": 0.1}


@pytest.fixture(scope="module")
def calm(world: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    """Without dropout, whose masks are others in company."""
    return make(tmp_path_factory.mktemp("copies"), dropout=0.0)


def run(world: World, root: Any, case: str, copies: int, **given: Any) -> Ran:
    settings = {**SHORT, **SLOW, **CASES[case], **given, "simulation__copies": copies}
    return federate(world, root, case.partition(" ")[0], **settings)


def own(ran: Ran) -> dict[str, Tensors]:
    """What clients keep to themselves, by client and file."""
    files = sorted((ran.run.path / "clients").glob("*/client-*/own-*.safetensors"))
    return {f"{path.parent.name}/{path.name}": load_file(path) for path in files}


def multiplied(tensors: Tensors) -> Tensors:
    """P·Q in place of P and Q."""
    products = {
        f"{k[:-2]}.PQ": t @ tensors[f"{k[:-2]}.Q"] for k, t in tensors.items() if k.endswith(".P")
    }
    return {k: t for k, t in tensors.items() if not k.endswith((".P", ".Q"))} | products


def apart(one: Tensors, other: Tensors, start: Tensors) -> float:
    """The largest difference of a tensor, its last bits aside, over how far that tensor has moved
    from the start. Of a residual the product counts: its factors are an SVD, in which the vectors
    of small or near singular values turn with the last bits."""
    one, other = multiplied(one), multiplied(other)
    assert one.keys() == other.keys()
    found = [0.0]
    for name, t in other.items():
        moved = (t - start[name]).abs().max() if name in start else t.abs().max()
        difference = (one[name] - t).abs().max() - BITS * t.abs().max()
        found.append(float(difference / moved) if moved else float(difference > 0))
    return max(found)


@pytest.mark.parametrize("case", CASES)
def test_every_method_ends_where_it_does_without(calm: World, tmp_path: Any, case: str) -> None:
    """The state, what clients keep, and what is told of them, to rounding."""
    shared, alone = (run(calm, tmp_path / str(n), case, n) for n in (3, 1))
    within = ADAMW if "adamw" in case else SGD
    assert apart(shared.state(2), alone.state(2), alone.state(0)) <= within
    assert case.startswith("local") or not same(alone.state(2), alone.state(0))
    kept = own(alone)
    assert own(shared).keys() == kept.keys()
    assert bool(kept) == case.startswith(("fedsa", "local"))
    for name, tensors in kept.items():
        assert apart(own(shared)[name], tensors, alone.state(0)) <= within
    for mine, theirs in zip(shared.rows("client"), alone.rows("client"), strict=True):
        assert mine["client"] == theirs["client"] and mine["loss"] == pytest.approx(
            theirs["loss"], rel=within
        )
        assert mine["bytes_up"] == theirs["bytes_up"]
    assert shared.row(2)["score"] == pytest.approx(alone.row(2)["score"], abs=0.05, nan_ok=True)


@pytest.mark.parametrize("when", [(1, "committed"), (2, "aggregate"), (2, "evaluate")], ids=str)
@pytest.mark.parametrize("method", ["fedsa", "fedex"])
def test_a_killed_run_goes_on_to_the_same_bits(
    world: World, tmp_path: Any, method: str, when: tuple[int, str]
) -> None:
    """Two clients that share and one alone, dropout and AdamW included."""
    given = {**SHORT, "simulation__copies": 2}
    whole = federate(world, tmp_path / "whole", method, **given)
    with pytest.raises(Crash):
        federate(world, tmp_path / "cut", method, watch=crash_at(*when), **given)
    cut = federate(world, tmp_path / "cut", method, resume=True, **given)
    assert all(same(whole.state(n), cut.state(n)) for n in range(3))
    left = own(cut)
    assert all(same(t, left[k]) for k, t in own(whole).items() if k.endswith("0002.safetensors"))
    assert [r["loss"] for r in whole.rows("client")] == [r["loss"] for r in cut.rows("client")]


PRIVATE = {
    **SHORT,
    "data__holdout": 0.2,
    "privacy__epsilon": 4.0,
    "train__optimizer": "sgd",
}
BUDGET = ("epsilon", "delta", "noise_multiplier", "sample_rate", "steps", "examples")


def test_private_clients_share_passes_and_no_budget(calm: World, tmp_path: Any) -> None:
    """ε, σ, q and steps are those of each alone, and so are the tensors where both draw from the
    same seed."""
    given = {**PRIVATE, "privacy__insecure_seed": 7}
    shared, alone = (
        federate(calm, tmp_path / str(n), "fedit", simulation__copies=n, **given) for n in (3, 1)
    )
    for mine, theirs in zip(shared.rows("client"), alone.rows("client"), strict=True):
        assert [mine[k] for k in BUDGET] == [theirs[k] for k in BUDGET]
        assert mine["epsilon"] <= 4
        assert mine["clipped"] == pytest.approx(theirs["clipped"], rel=1e-4, abs=1e-6)
    assert shared.row(2)["clients"] == 3
    assert apart(shared.state(2), alone.state(2), alone.state(0)) <= SGD
