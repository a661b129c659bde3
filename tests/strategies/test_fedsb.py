"""Fed-SB's start: the factors of METHODS, and a model that has taken one step."""

from dataclasses import dataclass

import pytest
import torch

from fedlora.testing import FakeBase, deltas
from strategies.fedsb import FedSB


@dataclass
class ScaledBase(FakeBase):
    """A base whose adapter has s ≠ 1."""

    kind: str = "lora-sb"

    @property
    def scale(self) -> float:
        return 0.5


@pytest.mark.parametrize("init", ["server", "clients", "sketch"])
@pytest.mark.usefixtures("global_rng_untouched")
def test_the_start_is_the_best_rank_r_step(init: str) -> None:
    """s B R0 A is the best rank-r approximation of −η sign(G), with G from whom it was asked for,
    and B and A are orthonormal to 1e-5."""
    base = ScaledBase()
    state = FedSB(init=init).begin(base)
    assert base.asked == [init] * len(base.shapes)
    model = deltas(state, base.scale, base.shapes)
    for module in base.shapes:
        step = -base.learning_rate * base.gradient(module, init).double().sign()
        U, S, V = torch.linalg.svd(step, full_matrices=False)
        best = (U[:, :4] * S[:4]) @ V[:4]
        assert float((model[module] - best).norm() / best.norm()) < 1e-5
        B, R, A = (state[f"{module}.{part}"] for part in "BRA")
        for gram in (B.T @ B, A @ A.T):
            torch.testing.assert_close(gram, torch.eye(4), rtol=0, atol=1e-5)
        torch.testing.assert_close(R, torch.diag(torch.diag(R)))
        assert {t.dtype for t in (B, R, A)} == {torch.float32}


@pytest.mark.usefixtures("global_rng_untouched")
def test_xs_starts_from_the_weights() -> None:
    """LoRA-XS: B = U_r S_r, A = V_rᵀ of W0, R0 ~ N(0, 1e-5²), each module's own; no gradients."""
    base = FakeBase("lora-sb")
    state = FedSB(init="xs").begin(base)
    assert base.asked == []
    drawn = []
    for module in base.shapes:
        S = torch.linalg.svdvals(base.weight(module).double())[:4].float()
        B, R, A = (state[f"{module}.{part}"] for part in "BRA")
        torch.testing.assert_close(B.T @ B, torch.diag(S**2), rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(A @ A.T, torch.eye(4), rtol=0, atol=1e-5)
        projected = B @ A
        best = base.weight(module) @ A.T @ A
        torch.testing.assert_close(projected, best, rtol=0, atol=1e-4)
        drawn.append(R)
    R = torch.stack(drawn)
    assert not torch.equal(drawn[0], drawn[1])
    assert 0.5e-5 < float(R.std()) < 2e-5


def test_two_servers_begin_alike() -> None:
    """The start is a function of base and seed: B and A can be hashed and compared."""
    for init in ("server", "xs"):
        one, other = (FedSB(init=init).begin(FakeBase("lora-sb")) for _ in range(2))
        assert all(torch.equal(t, other[k]) for k, t in one.items())


def test_the_head_is_as_drawn() -> None:
    """Only B, R and A are replaced."""
    base = FakeBase("lora-sb")
    state, initial = FedSB().begin(base), base.initial()
    assert state.keys() == initial.keys()
    assert all(torch.equal(state[k], initial[k]) for k in state if k.startswith("head."))
