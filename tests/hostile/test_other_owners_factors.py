"""An owner of FedEx's round tries to read the other owners' factors off what everybody is sent.

The residual is sent to all clients. It is a sum over clients, and as the stack of its terms it
would hold every client's own A_i and B_i. Promise: what is sent says the sum, and nothing else.
"""

import pytest
import torch
from torch import Tensor

from fedlora.strategy import Update
from fedlora.streams import stream
from fedlora.tensors import Tensors
from fedlora.testing import FakeBase, Federation
from strategies import fedex
from strategies.fedex import FedEx

LAYER, (M, N), K, R = "layer.0.query", (90, 120), 4, 4
P_I = 1 / K
VARIANTS = {
    "average": (FedEx(), torch.float32),
    "local": (FedEx(assignment="local"), torch.float32),
    "reinit": (FedEx(assignment="reinit"), torch.float32),
    "truncated above its rank": (FedEx(truncate=64), torch.float32),
    "cut as a whole": (FedEx(max_rank=8), torch.float32),
    "lossy wire": (FedEx(), torch.bfloat16),
}
every = pytest.mark.parametrize(("method", "wire"), VARIANTS.values(), ids=VARIANTS)


def uploads(seed: int, turn: Tensor | None = None) -> tuple[list[Tensor], list[Tensor]]:
    """B_i (m, r) and A_i (r, n) of whole numbers about whole means, so that sums are exact in fp32.

    Args:
        turn: G (r, r), which with its inverse and a reflection of the clients makes other factors
            of the same means and the same Σ p_i B_i A_i.
    """
    draw = stream(seed, "hostile", "factors")

    def whole(*shape: int) -> Tensor:
        return torch.randint(-3, 4, shape, generator=draw).double()

    b, a = 2 * whole(K, M, R), 2 * whole(K, R, N)
    b[-1], a[-1] = -b[:-1].sum(0), -a[:-1].sum(0)  # so that they sum to nothing
    B_bar, A_bar = 8 * whole(M, R), 8 * whole(R, N)
    if turn is not None:
        v = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
        H = torch.eye(K, dtype=torch.float64) - torch.outer(v, v) / 2  # H 1 = 1, H Hᵀ = 1
        b = torch.einsum("jk,jmr,rs->kms", H, b, turn)
        a = torch.einsum("jk,sr,jrn->ksn", H, torch.linalg.inv(turn).round(), a)
    return [(B_bar + x).float() for x in b], [(A_bar + x).float() for x in a]


def sent(
    method: FedEx, wire: torch.dtype, B: list[Tensor], A: list[Tensor]
) -> tuple[Tensors, list[Update], Federation]:
    """What the first client is sent after a round of these uploads, by the method itself."""
    fed = Federation(method, wire=wire, base=FakeBase(shapes={LAYER: (M, N)}, head=False))
    fed.number = 1
    updates = [fed.train(c, P_I) for c in fed.clients]
    for u, b, a in zip(updates, B, A, strict=True):
        u.tensors[f"{LAYER}.B"], u.tensors[f"{LAYER}.A"] = b, a
    fed.aggregate(updates)
    return fed.view(fed.clients[0], fed.round()), updates, fed


def read(view: Tensors, assignment: str, s: float) -> tuple[list[Tensor], list[Tensor]]:
    """Every owner's factors as the residual's columns would have them, were it a stack."""
    P, Q = view[f"{LAYER}.P"], view[f"{LAYER}.Q"]
    blocks = [slice(i * R, (i + 1) * R) for i in range(K)]
    if assignment != "average":  # [s p_i B_i] and [A_i]
        return [P[:, x] / (s * P_I) for x in blocks], [Q[x] for x in blocks]
    B_bar, A_bar = view[f"{LAYER}.B"], view[f"{LAYER}.A"]
    B = [B_bar + P[:, x] / (s * P_I) for x in blocks[:-1]]
    last = A_bar - P_I * sum((Q[x] for x in blocks[:-1]), torch.zeros(R, N))
    A = [last + Q[x] for x in blocks[:-1]]
    return [*B, (B_bar - P_I * sum(B, torch.zeros(M, R))) / P_I], [*A, last]


def off(guess: list[Tensor], truth: list[Tensor]) -> list[float]:
    """Of each other owner's factor: how far the guess is off, of what sets it apart from the mean,
    which everybody may know."""
    mean = sum(truth, torch.zeros_like(truth[0])) / K
    pairs = list(zip(guess, truth, strict=True))[1:]
    return [
        float((g - t).norm() / (t - mean).norm()) if g.shape == t.shape else 9 for g, t in pairs
    ]


def unprotected(monkeypatch: pytest.MonkeyPatch) -> None:
    """The residual enters the state as the stack that it is made as."""
    monkeypatch.setattr(fedex, "compress", lambda P, Q: (P, Q))


@pytest.mark.parametrize("assignment", ["average", "local", "reinit"])
def test_no_owner_reads_the_factors_of_another(
    assignment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attack reads all A_i and B_i off a residual that is sent as a stack, and none off the one
    that is sent."""
    method, wire = VARIANTS[assignment]
    B, A = uploads(1)

    def attacked() -> list[float]:
        view, updates, fed = sent(method, wire, B, A)
        if assignment == "local":  # the attacker takes its own out, which stand at the end
            view[f"{LAYER}.P"], view[f"{LAYER}.Q"] = (
                fed.state[f"{LAYER}.P"],
                fed.state[f"{LAYER}.Q"],
            )
        B_read, A_read = read(view, assignment, updates[0].client.scale)
        return off(B_read, B) + off(A_read, A)

    assert min(attacked()) > 0.5
    unprotected(monkeypatch)
    assert max(attacked()) < 1e-5


@every
@pytest.mark.parametrize("seed", [2, 3])
def test_what_is_sent_depends_on_the_product_alone(
    method: FedEx, wire: torch.dtype, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two federations whose clients hold different factors, with the same means and the same mean
    of products, are sent the same, signs and all; it is not so for the stack."""
    up = torch.triu(torch.ones(R, R, dtype=torch.float64))  # of determinant 1, as is its transpose
    first, second = uploads(seed), uploads(seed, turn=up @ up.T)
    assert min(off(second[0], first[0]) + off(second[1], first[1])) > 0.5

    def apart() -> float:
        views = [sent(method, wire, *factors)[0] for factors in (first, second)]
        own = {f"{LAYER}.A", f"{LAYER}.B"} if method.assignment == "local" else set()
        for view in views if own else ():  # a client's own columns follow those that all are sent
            view[f"{LAYER}.P"], view[f"{LAYER}.Q"] = (
                view[f"{LAYER}.P"][:, : K * R],
                view[f"{LAYER}.Q"][: K * R],
            )
        assert views[0].keys() == views[1].keys()
        names = views[0].keys() - own
        if any(views[0][k].shape != views[1][k].shape for k in names):
            return 9
        return max(
            float((views[0][k] - views[1][k]).norm() / views[0][k].norm().clamp(1e-30))
            for k in names
        )

    assert apart() < 1e-5
    if method.truncate is method.max_rank is None:  # which decomposes by itself
        unprotected(monkeypatch)
        assert apart() > 0.5


def test_directions_without_a_value_are_not_sent() -> None:
    """Where products cancel, the directions that remain of the decomposition are those of clients'
    own factors: they are dropped, under `truncate` too."""
    B, A = uploads(5)
    B = [B[0]] * K  # all alike, so that averaging loses nothing
    for method in (FedEx(), FedEx(truncate=8), FedEx(max_rank=8)):
        view, _, _ = sent(method, torch.float32, B, A)
        assert not {k for k in view if k.endswith((".P", ".Q", ".D"))}
