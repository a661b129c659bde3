"""Why the method matters: what equal noise on the trained parts does to the product s B A.

    (B + ξ_B)(A + ξ_A) = B A + ξ_B A + B ξ_A + ξ_B ξ_A

Shapes: W (m, n) of several layers that are not square, rank r = 3, s = 1.5.
"""

import pytest
import torch

from fedlora.adapters import Adapter
from fedlora.privacy.entropy import insecure
from strategies.fedit import FedIT
from strategies.fedsb import FedSB
from strategies.ffa import FFA
from tests.fedlora.adapters import tiny
from tests.fedlora.privacy.small import N, fit

RANK, SCALE, DRAWS = 3, 1.5, 60
TAU = 0.05  # lr σ C / (q n), the deviation of one SGD step's noise on a coordinate
STEP = {"sigma": 2.0, "clip": 0.5, "q": 1e-6, "lr": TAU * 1e-6 * N, "steps": 1}


def made(method) -> Adapter:
    """As PEFT starts it, but B, which is drawn: orthonormal B and A for Fed-SB."""
    adapter = tiny.adapter("bert", method.adapter, rank=RANK, alpha=SCALE * RANK)
    start = adapter.initial()
    if method.adapter == "lora":
        start |= {k: t for k, t in tiny.drawn(adapter).items() if k.endswith(".B")}
    adapter.load(start)
    assert any(m != n for m, n in adapter.shapes.values())
    return adapter


def predicted(method, A, B) -> float:
    """E‖noise in s B A‖²_F of a layer, by the method's own algebra."""
    (m, r), n = B.shape, A.shape[1]
    a, b = float(A.square().sum()), float(B.square().sum())
    if method is FedIT:
        return SCALE**2 * TAU**2 * (m * a + n * b + m * n * r * TAU**2)
    return SCALE**2 * TAU**2 * (m * a if method is FFA else r**2)


def measured(method) -> tuple[float, float]:
    """(measured, predicted), summed over layers, of private steps that drew no row."""
    adapter = made(method)
    start = adapter.initial() | adapter.read(adapter.parts)
    clean = {k: adapter.delta(k).double() for k in adapter.shapes}
    total = 0.0
    for i in range(DRAWS):
        adapter.load(start)
        fit(adapter, insecure(3, i), parts=method.trained, **STEP)
        for k in adapter.shapes:
            total += float((adapter.delta(k).double() - clean[k]).square().sum()) / DRAWS
    layers = ((start[f"{k}.A"], start[f"{k}.B"]) for k in adapter.shapes)
    return total, sum(predicted(method, A, B) for A, B in layers)


def test_the_noise_in_the_product():
    """FedIT s²τ²(m‖A‖² + n‖B‖² + m n r τ²), FFA s²τ² m‖A‖², Fed-SB s²τ² r²: Fed-SB has least, FedIT
    most, with the same σ, clip and rate."""
    found = {}
    for method in (FedSB, FFA, FedIT):
        found[method], exact = measured(method)
        assert found[method] == pytest.approx(exact, rel=0.05)
    assert found[FedSB] < found[FFA] < found[FedIT]


def test_orthonormal_factors():
    """What makes Fed-SB's noise r² entries and no more."""
    adapter = made(FedSB)
    for k in adapter.shapes:
        A, B = (adapter.initial()[f"{k}.{part}"] for part in "AB")
        for product in (A @ A.T, B.T @ B):
            torch.testing.assert_close(product, torch.eye(RANK), rtol=0, atol=1e-5)
