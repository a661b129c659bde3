"""The benchmark of exact methods: all ways compute the same thing, its truth is independent and
true, and what it says is what it measured."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from simulations.benchmarks import exact, factored, trials
from simulations.benchmarks.factored import MEAN, RESIDUAL, WORKS, Layer, Uploads, Work, draw
from simulations.benchmarks.timing import spread

SHAPES = [Layer(40, 40, 3, 4, 6), Layer(300, 30, 4, 3, 5)]  # square; more rows than a block has
BOTH = pytest.mark.parametrize("layer", SHAPES, ids=["square", "tall"])


def dense(work: Work, u: Uploads) -> np.ndarray:
    """The mean or the residual, written down as it is defined."""
    products = [
        p * b.double().numpy() @ a.double().numpy()
        for p, b, a in zip(u.weights, u.B, u.A, strict=True)
    ]
    lost = 0 if work.of_mean else u.B_bar.double().numpy() @ u.A_bar.double().numpy()
    return u.scale * (sum(products) - lost)


def of_rank(W: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """The best approximation of that rank, and the singular values that it keeps."""
    U, S, V = np.linalg.svd(W, full_matrices=False)
    return (U[:, :rank] * S[:rank]) @ V[:rank], S[:rank]


def off(found: np.ndarray, truth: np.ndarray) -> float:
    return float(np.linalg.norm(found - truth) / np.linalg.norm(truth))


@BOTH
@pytest.mark.parametrize("name", WORKS)
def test_all_ways_compute_the_same(name: str, layer: Layer) -> None:
    """Whatever is timed gives the work's definition, to fp32's rounding, on any shape."""
    work, u = WORKS[name], draw(layer, "cpu")
    truth = dense(work, u)
    if work.decomposes:
        truth, _ = of_rank(truth, layer.rank if work.of_mean else layer.truncated)
    for way in work.ways.values():
        found = factored.block(way(layer, u), slice(None)).numpy()
        assert off(found, truth) < 5e-6


@BOTH
@pytest.mark.parametrize("work", [WORKS[k] for k in WORKS if WORKS[k].decomposes])
def test_the_truth_is_the_best_of_its_rank(work: Work, layer: Layer) -> None:
    """Both float64 ways to it agree with numpy's decomposition, far below what is measured."""
    u = draw(layer, "cpu")
    product, values = of_rank(dense(work, u), layer.rank if work.of_mean else layer.truncated)
    found, kept = factored.best(work, layer, u)
    assert off(factored.block(found, slice(None)).numpy(), product) < 1e-11
    np.testing.assert_allclose(kept.numpy(), values, rtol=1e-11)


@BOTH
def test_errors_by_blocks_are_those_of_the_whole(layer: Layer) -> None:
    """Of a product and of a matrix, over all rows, whatever is left for the last block."""
    u, truth = draw(layer, "cpu"), dense(RESIDUAL, draw(layer, "cpu"))
    wrong = [RESIDUAL.ways[k](layer, u) for k in (exact.FACTORS, exact.DENSE)]
    wrong = [(1.5 * wrong[0][0], wrong[0][1]), 0.9 * wrong[1]]
    lost, whole = factored.errors(wrong, lambda rows: factored.exact(RESIDUAL, u, rows), layer)
    assert whole == pytest.approx(np.linalg.norm(truth), rel=1e-12)
    assert lost == pytest.approx([0.5 * whole, 0.1 * whole], rel=1e-5)


@pytest.mark.usefixtures("global_rng_untouched")
def test_uploads_are_those_of_a_round() -> None:
    """Uneven weights that sum to one, α ≠ r, clients that differ, means that clients would hold;
    in a first round nothing in common in B; the same each time."""
    layer = SHAPES[0]
    u, later = draw(layer, "cpu"), draw(layer, "cpu", common=1.0)
    assert sum(u.weights) == pytest.approx(1) and len(set(u.weights)) == layer.clients
    assert u.scale != 1 and not torch.equal(u.B[0], u.B[1]) and not torch.equal(u.A[0], u.A[1])
    mean = sum(p * b.double() for p, b in zip(u.weights, u.B, strict=True))
    assert torch.equal(u.B_bar, mean.float())
    assert float(torch.cosine_similarity(u.B[0].flatten(), u.B[1].flatten(), dim=0)) < 0.3
    assert float(torch.cosine_similarity(later.B[0].flatten(), later.B[1].flatten(), dim=0)) > 0.9
    assert all(map(torch.equal, u.A, draw(layer, "cpu").A))


def test_memory_is_told_by_a_process_of_its_own() -> None:
    """A dense way takes the dense matrix at least, factors less, and results come back."""
    layer = Layer(4096, 256, 3, 4, 6)
    told = trials.in_a_process(layer, "cpu")
    assert told.keys() == {(w.name, k) for w in WORKS.values() for k in w.ways}
    matrix = 4 * layer.m * layer.n / 1e6
    assert told["residual", "dense"].megabytes > 2 * matrix > matrix
    assert told["residual", "factors"].megabytes < 2 * matrix
    found = told[MEAN.name, "dense"].found
    product, _ = of_rank(dense(MEAN, draw(layer, "cpu")), layer.rank)
    assert off(found[0] @ found[1], product) < 1e-5


def test_targets_are_held_against_the_worst_layer() -> None:
    """Ours on one thread; a target just reached is met."""

    def result(layer: str, way: str, threads: int, *measured: float | None) -> exact.Result:
        return exact.Result("cpu", layer, "residual", way, threads, 1, spread([1.0]), *measured)

    found = exact.targets(
        [
            result("a", "factors", 1, 50.0, 1.0, 20.0, 1e-7, None),
            result("b", "factors", 1, 80.0, 1.0, 9.9, 1.1e-6, None),
            result("b", "dense", 1, 1.0, 9.9, 1.0, 1.0, None),
            result("b", "factors", 2, 3.0),
        ]
    )
    assert [(t["measured"], t["met"]) for t in found] == [
        ("50×", True),
        ("9.9×", False),
        ("1.1e-06", False),
    ]


def test_it_says_what_it_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every layer has a table with every way of every work, the same on the terminal and in the
    JSON file, with the number of runs and the error of each; dense SVDs run once."""
    monkeypatch.setattr(exact, "in_a_process", trials.trials)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path, before = tmp_path / "found.json", torch.get_num_threads()
    exact.main(["--quick", "--json", str(path)])
    assert torch.get_num_threads() == before
    told, found = capsys.readouterr().out, json.loads(path.read_text())
    assert found["benchmark"] == "exact" and found["seconds"] > 0
    for layer, one in zip(exact.QUICK, found["tables"], strict=True):
        assert one["columns"] == exact.COLUMNS
        rows = {
            (row[0], row[1]): dict(zip(one["columns"], row, strict=True)) for row in one["rows"]
        }
        expected = {(w.name, k) for w in WORKS.values() for k in w.ways}
        both = {("residual, 2 threads", k) for k in RESIDUAL.ways if layer == exact.QUICK[0]}
        assert rows.keys() == expected | both
        for key in expected:
            assert float(rows[key]["error"]) < 1e-5
            slow = WORKS[key[0]].decomposes and key[1] == "dense"
            assert int(rows[key]["runs"]) == (1 if slow else 30 if key[1] == "factors" else 3)
        assert all(cell in told for row in one["rows"] for cell in row)
    assert {t["what"].partition(":")[0] for t in found["targets"]} == {f"{k}, cpu" for k in WORKS}
    assert all(t["met"] for t in found["targets"] if t["target"].startswith("≤"))
