"""Whole runs of every method, followed by hand from the files that they keep.

Symbols: p_i weights, s_i scales, A_i (r, n) and B_i (m, r) uploads, W = W0 + s B A + P Q + D.
"""

from dataclasses import replace

import pytest
import torch

from fedlora.tensors import modules, part_of, select
from tests.federation import Ran, delta, federate, kept, same

FEDSB = {"adapter__rank": 8, "train__lr": 5e-3}
FSLORA = {"strategy__ranks": [1, 2, 3]}
CASES = {
    "fedit": {},
    "ffa": {},
    "fedex": {},
    "fedsa": {},
    "fedsb": FEDSB,
    "fslora": FSLORA,
    "local": {},
}
UPLOADS = {
    "fedit": {"A", "B", "head"},
    "ffa": {"B", "head"},
    "fedex": {"A", "B", "head"},
    "fedsa": {"A"},
    "fedsb": {"R", "head"},
    "fslora": {"A", "B", "head"},
    "local": set(),
}
# Parameters of the tiny model's parts at rank 4 (Fed-SB: 8), two layers of two modules each.
A, B, HEAD, R = 2 * (4 * 32 + 4 * 32), 2 * (32 * 4 + 48 * 4), 32 * 2 + 2, 4 * 8 * 8
P_AND_Q = 2 * ((32 + 32) + (48 + 32))  # for one column


@pytest.fixture(scope="module")
def runs(world, tmp_path_factory):
    """Three rounds of every method, every tensor kept."""
    return {
        method: federate(
            world, tmp_path_factory.mktemp(method), method, run__keep="updates", **settings
        )
        for method, settings in CASES.items()
    }


def mean(ran: Ran, number: int, name: str) -> torch.Tensor:
    return sum(k.weight * k.update[name].double() for k in kept(ran, number))


def near(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one.double(), other, rtol=0, atol=2e-6)


@pytest.mark.parametrize("method", ["fedex", "ffa", "fedsb"])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_exact_methods_are_exact(runs, method, number):
    """After every round W is W0, the residual so far, and s Σ p_i B_i (R_i) A_i, in float64."""
    before, after = runs[method].state(number - 1), runs[method].state(number)
    for module in modules(after, "B"):
        still = {k: t for k, t in before.items() if part_of(k) in "PQD"}
        own = [{**select(k.sent, {"A", "B", "R"}), **k.update} for k in kept(runs[method], number)]
        truth = sum(
            k.weight * delta({**t, **still}, module, k.scale)
            for k, t in zip(kept(runs[method], number), own, strict=True)
        )
        near(delta(after, module, kept(runs[method], number)[0].scale), truth)
        assert float((truth - delta(before, module, 1.0)).abs().max()) > 1e-4


@pytest.mark.parametrize("method", ["fedit", "ffa", "fedsa", "fedsb"])
@pytest.mark.parametrize("number", [1, 3])
def test_the_means_are_means_and_the_rest_stays(runs, method, number):
    """What is uploaded becomes its weighted mean; every other tensor keeps its bits."""
    before, after = runs[method].state(number - 1), runs[method].state(number)
    uploaded = select(after, UPLOADS[method])
    for name in uploaded:
        near(after[name], mean(runs[method], number, name))
    rest = {k: t for k, t in after.items() if k not in uploaded}
    assert same(rest, {k: t for k, t in before.items() if k not in uploaded})


@pytest.mark.parametrize("number", [1, 2, 3])
def test_fslora_puts_slices_back(runs, number):
    """Rows of A and columns of B move by Σ p_i (slice_i − what was sent); others keep their
    bits. Which rows a client had is found by looking for what it was sent."""
    ran = runs["fslora"]
    before, after = ran.state(number - 1), ran.state(number)
    for module in modules(after, "A"):
        A, B = before[f"{module}.A"].double(), before[f"{module}.B"].double()
        touched = set()
        for k in kept(ran, number):
            rows = [
                next(j for j in range(4) if torch.equal(row, before[f"{module}.A"][j]))
                for row in k.sent[f"{module}.A"]
            ]
            assert len(rows) == k.rank
            assert torch.equal(k.sent[f"{module}.B"], before[f"{module}.B"][:, rows])
            A[rows] += k.weight * (k.update[f"{module}.A"] - k.sent[f"{module}.A"]).double()
            B[:, rows] += k.weight * (k.update[f"{module}.B"] - k.sent[f"{module}.B"]).double()
            touched |= set(rows)
        near(after[f"{module}.A"], A)
        near(after[f"{module}.B"], B)
        for j in set(range(4)) - touched:
            assert torch.equal(after[f"{module}.A"][j], before[f"{module}.A"][j])


@pytest.mark.parametrize("method", CASES)
def test_weights_ranks_and_scales_are_as_said(runs, method):
    """p_i goes with training rows and sums to one; rank and scale are the client's."""
    ran = runs[method]
    examples = {r["client"]: r["examples"] for r in ran.rows("client")}
    assert len(set(examples.values())) == 3
    for number in (1, 2, 3):
        files = kept(ran, number)
        assert sum(k.weight for k in files) == pytest.approx(1)
        for k in files:
            assert k.weight == pytest.approx(examples[k.client] / sum(examples.values()))
            assert k.weight == ran.row(number, k.client)["weight"]
        ranks = {k.client: k.rank for k in files}
        expected = {"fslora": [1, 2, 3], "fedsb": [8, 8, 8]}.get(method, [4, 4, 4])
        assert list(ranks.values()) == expected
        full = {"fedsb": 1.0}.get(method, 2.0)
        scales = [k.scale for k in files]
        assert scales == [2.0 * 4 / r if method == "fslora" else full for r in expected]


@pytest.mark.parametrize("method", CASES)
def test_only_what_is_shared_goes_up(runs, method):
    """An update has the shared parts and no others, in fp32 as the metrics count it."""
    for k in kept(runs[method], 2):
        assert {part_of(name) for name in k.update} == UPLOADS[method]
        size = 4 * sum(t.numel() for t in k.update.values())
        assert runs[method].row(2, k.client)["bytes_up"] == size


@pytest.mark.parametrize(
    ("method", "up", "first", "later"),
    [
        ("fedit", A + B + HEAD, 2 * (A + B + HEAD), A + B + HEAD),
        ("ffa", B + HEAD, A + 2 * (B + HEAD), B + HEAD),
        ("fedsa", A, 2 * A + B + HEAD, A),
        ("fedsb", R + HEAD, 2 * (A + B) + 2 * (R + HEAD), R + HEAD),
        ("local", 0, A + B + HEAD, 0),
    ],
)
def test_bytes_are_those_of_the_method(runs, method, up, first, later):
    """Three clients; in round 1 everything goes down once and the round's result once more (for
    the clients to be evaluated on), later the result only: FFA's A, Fed-SB's A and B, FedSA's B
    and head cross once."""
    for number, down in ((1, first), (2, later), (3, later)):
        row = runs[method].row(number)
        assert (row["bytes_up"], row["bytes_down"]) == (3 * 4 * up, 3 * 4 * down)


def test_a_part_that_crossed_once_is_still_in_what_is_held(runs):
    """`sent` is the whole view, so FFA's A is in round 3's, with the bits of round 0."""
    first = runs["ffa"].state(0)
    for k in kept(runs["ffa"], 3):
        assert same(select(k.sent, {"A"}), select(first, {"A"}))


@pytest.mark.parametrize(("wire", "size"), [("fp32", 4), ("fp16", 2), ("bf16", 2)])
def test_low_precision_halves_trained_parts_and_leaves_residuals(world, tmp_path, wire, size):
    """Trained parts cross in the wire's format, P and Q in fp32, and of those the new columns
    only: (K − 1) r each round, and 2 r more for what the format rounds off the means."""
    ran = federate(
        world, tmp_path, "fedex", run__rounds=2, run__wire=wire, run__keep="updates",
        adapter__rank=2,
    )  # fmt: skip
    trained = (A + B) // 2 + HEAD
    columns = 2 * 2 if wire == "fp32" else 2 * 2 + 2 * 2
    residual = 4 * columns * P_AND_Q
    assert ran.row(1)["bytes_up"] == 3 * size * trained
    assert ran.row(1)["bytes_down"] == 3 * (2 * size * trained + residual)
    if wire == "fp32":  # in the other formats the second round's factors outgrow a layer
        assert ran.row(2)["bytes_down"] == 3 * (size * trained + residual)
    for module in modules(ran.state(2), "B"):
        truth = sum(k.weight * delta({**k.sent, **k.update}, module, k.scale) for k in kept(ran, 2))
        # Exact for the factors that the clients are really given next, in that format.
        near(delta(ran.state(2), module, 2.0), truth)
    held = select(ran.state(2), {"A", "B"})
    dtype = ran.config.run.wire_dtype
    assert same(held, {k: t.to(dtype).float() for k, t in held.items()})


def test_the_same_seed_gives_the_same_bits_and_no_generator_moves(
    world, tmp_path, global_rng_untouched
):
    """Two runs agree in every state; another seed starts elsewhere and trains otherwise."""
    one = federate(world, tmp_path / "one", run__keep="all", adapter__dropout=0.1)
    two = federate(world, tmp_path / "two", run__keep="all", adapter__dropout=0.1)
    for number in range(4):
        assert same(one.state(number), two.state(number))
    other = federate(world, tmp_path / "other", run__keep="all", run__seed=1)
    for number in range(4):
        assert not same(one.state(number), other.state(number))


def test_it_learns(world, tmp_path):
    """With enough steps the held-out score is far above the half that guessing gets."""
    steps = {"train__steps": 40, "train__batch_size": 16}
    ran = federate(world, tmp_path, data__test=0.3, run__baseline=True, **steps)
    assert ran.row(0)["score"] < 0.6
    assert ran.row(3)["score"] > 0.85


def test_uniform_weights_on_request(world, tmp_path):
    """Every client counts the same, whatever its rows."""
    ran = federate(
        world, tmp_path, "fedit", run__rounds=1, run__weights="uniform", run__keep="updates"
    )
    assert [k.weight for k in kept(ran, 1)] == [pytest.approx(1 / 3)] * 3
    for name in kept(ran, 1)[0].update:
        near(ran.state(1)[name], mean(ran, 1, name))


def test_what_looks_odd_in_the_rows_is_said(world, tmp_path):
    """Before the first round, wherever the coordinator runs."""
    rows = world.data.read_text().replace('"label": "good"', '"label": "Good"', 3)
    (tmp_path / "rows.jsonl").write_text(rows)
    odd = replace(world, data=tmp_path / "rows.jsonl")
    ran = federate(odd, tmp_path / "runs", "ffa", run__rounds=1, train__steps=1)
    assert ran.resident.federation.notes
    assert set(ran.resident.federation.notes) <= set(ran.watch.notes)
    assert any("'Good' (3 rows)" in note for note in ran.watch.notes)
