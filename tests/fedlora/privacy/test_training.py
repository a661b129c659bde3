"""DP-SGD against the algorithm written out, one row at a time."""

import math
from itertools import chain

import pytest
import torch

from fedlora.privacy import norms as histogram
from fedlora.privacy.entropy import insecure, normals
from tests.fedlora.privacy.small import (
    POISON,
    ROWS,
    N,
    Task,
    adapter,
    apart,
    by_hand,
    drawn,
    fit,
    gradient,
    norm,
)

SECRET = insecure(0, "tests")
CASES = [
    ("bert", "lora", "stacked"),
    ("bert", "lora", "hooks"),
    ("llama", "lora-sb", "hooks"),
    ("gpt2", "vera", "stacked"),
]
ENGINES = ("stacked", "hooks")
RARE = 1e-6  # a sample rate at which no row is ever drawn


def sgd(lr=0.1):
    return lambda parameters: torch.optim.SGD(parameters, lr=lr)


def norms(made):
    made.trainable(made.parts)
    return [norm(gradient(made, row)) for row in ROWS]


@pytest.mark.parametrize(("architecture", "kind", "engine"), CASES)
def test_without_noise_or_clipping_it_is_sgd_over_the_expected_batch(architecture, kind, engine):
    """θ ← θ − lr Σ ∇loss_i / (q n), over the rows that the secret draws."""
    steps = drawn(SECRET, 0.4, N, 4)
    assert len({len(s) for s in steps}) > 1  # so that dividing by the drawn number would differ
    moved, _ = fit(adapter(architecture, kind), SECRET, engine=engine)
    assert apart(moved, by_hand(adapter(architecture, kind), steps, sgd())) < 1e-5


@pytest.mark.parametrize("engine", ENGINES)
def test_adamw_is_given_the_same_gradient(engine):
    """A fresh AdamW, weight decay included."""
    steps = drawn(SECRET, 0.4, N, 4)
    settings = {"optimizer": "adamw", "lr": 0.01, "weight_decay": 0.1}
    moved, _ = fit(adapter(), SECRET, engine=engine, **settings)

    def adamw(parameters):
        return torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1)

    assert apart(moved, by_hand(adapter(), steps, adamw)) < 1e-3


@pytest.mark.parametrize(("architecture", "kind", "engine"), CASES)
def test_every_row_is_clipped_on_its_own(architecture, kind, engine):
    """By one factor over all its tensors, the head included, some rows and not others."""
    every = norms(adapter(architecture, kind))
    clip = sorted(every)[N // 4]
    steps = drawn(SECRET, 0.4, N, 4)
    moved, _ = fit(adapter(architecture, kind), SECRET, engine=engine, clip=clip)
    truth = by_hand(adapter(architecture, kind), steps, sgd(), clip=clip)
    assert apart(moved, truth) < 2e-5
    assert apart(moved, by_hand(adapter(architecture, kind), steps, sgd())) > 0.02


@pytest.mark.parametrize("engine", ENGINES)
def test_memory_is_no_matter(engine):
    """Two or three rows at a time or all at once: the same steps, the same noise once a step."""
    settings = {"sigma": 0.5, "q": 0.7, "clip": 0.3, "engine": engine}
    found = [fit(adapter(), SECRET, physical_batch=most, **settings)[0] for most in (2, 64)]
    assert apart(*found) < 1e-5
    task = Task()
    bounded, _ = fit(adapter(), SECRET, most=24, task=task, **settings)  # rows are padded to 8
    assert max(task.passes) == 3
    assert apart(found[0], bounded) < 1e-5


def noise_alone(parts, deviation, steps):
    """What N(0, deviation²) moves: a stream of its own for each step and parameter."""
    return {
        name: -deviation * sum(normals(p.shape, SECRET, "noise", step, i) for step in range(steps))
        for i, (name, p) in enumerate(parts.items())
    }


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("settings", "steps"), [({"steps": 3}, 3), ({"steps": None, "epochs": 2, "batch_size": 5}, 6)]
)
def test_a_step_that_drew_no_row_is_noise(engine, settings, steps):
    """θ ← θ − lr σ C ξ / (q n) for each of the round's steps, none left out."""
    assert not any(drawn(SECRET, RARE, N, steps))
    made = adapter()
    lr, sigma, clip = 1e-7, 1.5, 0.2
    moved, _ = fit(made, SECRET, sigma=sigma, q=RARE, clip=clip, engine=engine, lr=lr, **settings)
    trained = {k: p for k, p in made.live().items() if p.requires_grad}
    assert list(trained) == list(moved)
    assert apart(moved, noise_alone(trained, lr * sigma * clip / (RARE * N), steps)) < 1e-5


def test_empty_steps_among_others():
    """Rows now and then, as small batches have it."""
    steps = drawn(SECRET, 0.08, N, 8)
    assert [] in steps and any(steps)
    moved, _ = fit(adapter(), SECRET, q=0.08, steps=8, lr=0.01)
    assert apart(moved, by_hand(adapter(), steps, sgd(0.01), q=0.08)) < 1e-5


@pytest.mark.parametrize(("statistics", "deviation"), [(False, 1.0), (True, 1 / math.sqrt(0.96))])
def test_the_histogram_takes_its_share_of_the_budget(statistics, deviation):
    """With it, the gradient's noise is σC/√(1 − b²): as many draws as tell 2 % apart."""
    made, settings = adapter(), {"sigma": 1.0, "q": RARE, "clip": 1.0, "lr": RARE * N}
    moved = [fit(made, insecure(1, i), statistics=statistics, **settings)[0] for i in range(60)]
    draws = torch.cat([t.flatten() for one in moved for t in one.values()]) / 2  # of four steps
    assert len(draws) > 60_000
    assert float(draws.std()) == pytest.approx(deviation, rel=8e-3)
    assert float(draws.mean()) == pytest.approx(0, abs=0.02)


def test_statistics_of_gradients():
    """Without noise: the share above C of the rows that were expected, and a median within a
    bin's width, a factor of two, of the exact one. Off, nothing is told."""
    every = norms(adapter())
    clip = 1.01 * sorted(every)[N // 3]
    steps = drawn(SECRET, 0.4, N, 1)[0]
    _, told = fit(adapter(), SECRET, clip=clip, statistics=True, steps=1)
    above = sum(every[i] > clip for i in steps)
    assert told.clipped == pytest.approx(above / (0.4 * N))
    exact = sorted(every[i] for i in steps)[(len(steps) - 1) // 2]
    assert exact / 2 <= told.gradient_norm <= exact * 2
    _, told = fit(adapter(), SECRET, clip=clip, steps=1)
    assert (told.clipped, told.gradient_norm) == (None, None)


def test_statistics_are_noised():
    """What is told comes from the counts of all steps with noise σ √steps / b on each."""
    every, sigma, steps = norms(adapter()), 0.1, drawn(SECRET, 0.4, N, 3)
    clip = 1.01 * sorted(every)[N // 3]
    settings = {"clip": clip, "sigma": sigma, "steps": 3, "lr": 1e-12}
    _, told = fit(adapter(), SECRET, statistics=True, **settings)
    counts = torch.zeros(8)
    for i in chain(*steps):
        counts[sum(every[i] > clip * edge for edge in histogram.EDGES)] += 1
    exact = histogram.share_clipped(counts, 0.4 * N * 3)
    counts = counts + sigma * 3**0.5 / 0.2 * normals((8,), SECRET, "histogram")
    assert told.clipped == pytest.approx(histogram.share_clipped(counts, 0.4 * N * 3), rel=1e-5)
    assert told.gradient_norm == pytest.approx(histogram.median(counts, clip), rel=1e-5)
    assert told.clipped != pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_row_without_a_finite_gradient_adds_nothing(engine):
    """NaN gets past a clipping by norm: such a row is left out of the sum, the others stay."""
    steps = drawn(SECRET, 0.4, N, 4)
    bad, rows = steps[0][0], ROWS.clone()
    rows[bad, 0] = POISON
    moved, told = fit(adapter(), SECRET, rows=rows, engine=engine, clip=0.5, statistics=True)
    without = [[i for i in step if i != bad] for step in steps]
    assert apart(moved, by_hand(adapter(), without, sgd(), rows=rows, clip=0.5)) < 2e-5
    assert math.isfinite(told.clipped) and math.isfinite(told.gradient_norm)


@pytest.mark.parametrize("engine", ENGINES)
def test_one_row_moves_one_step_by_at_most_its_bound(engine):
    """‖θ with the row − θ without it‖ ≤ lr C / (q n) under the same noise: what σ is measured
    against. Without: the row is there and adds nothing."""
    absent = ROWS.clone()
    absent[5, 0] = POISON
    settings = {"sigma": 1.0, "q": 1.0, "clip": 0.05, "steps": 1, "engine": engine}
    assert norms(adapter())[5] > 0.05
    one, other = (fit(adapter(), SECRET, rows=rows, **settings)[0] for rows in (ROWS, absent))
    distance = norm([one[k] - other[k] for k in one])
    assert distance == pytest.approx(0.1 * 0.05 / N, rel=1e-3)


@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_is_left_behind(engine, global_rng_untouched):
    """The model is in evaluation mode, without hooks, per-row gradients or replaced forwards, and
    global generators are where they were, under dropout too."""
    made = adapter(still=False)

    def hooks():
        return sum(
            len(getattr(m, kind))
            for m in made.model.modules()
            for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
        )

    def forwards():
        return [m.__dict__.get("forward") for m in made.model.modules()]

    before = hooks(), forwards()
    moved, _ = fit(made, SECRET, sigma=1.0, clip=0.1, engine=engine, statistics=True)
    assert all(t.any() for t in moved.values())
    assert (hooks(), forwards()) == before
    assert not any(m.training for m in made.model.modules())
    for p in made.model.parameters():
        assert not {"grad_sample", "summed_grad"} & p.__dict__.keys()


@pytest.mark.parametrize("engine", ENGINES)
def test_everything_comes_from_the_secret(engine):
    """The same secret trains to the same bits, dropout included; another one otherwise, also where
    it differs in its last bit alone."""

    def moved(secret, **settings):
        return fit(adapter(still=False), secret, engine=engine, statistics=True, **settings)

    near = SECRET[:-1] + bytes([SECRET[-1] ^ 1])
    for settings in ({}, {"sigma": 1.0, "clip": 0.1}):
        (one, told), (again, same), (other, _) = (
            moved(s, **settings) for s in (SECRET, SECRET, near)
        )
        assert all(torch.equal(t, again[k]) for k, t in one.items()) and told == same
        assert not any(torch.equal(t, other[k]) for k, t in one.items())


def test_dropout_is_on_and_drawn_from_the_secret():
    """Where every row is in every step and no noise is added, nothing else makes a difference."""
    one, other = (fit(adapter(still=False), insecure(5, i), q=1.0)[0] for i in range(2))
    still, again = (fit(adapter(), insecure(5, i), q=1.0)[0] for i in range(2))
    assert apart(still, again) == 0
    assert apart(one, still) > 0.05 and apart(one, other) > 0.05


def test_only_the_parts_that_are_trained_get_noise():
    """FFA's A keeps its bits, and has no share in what is clipped."""
    made = adapter()
    A = made.read({"A"})
    moved, _ = fit(made, SECRET, parts={"B"}, sigma=1.0, clip=0.1)
    assert all(torch.equal(t, A[k]) for k, t in made.read({"A"}).items())
    assert all(t.any() for t in moved.values())
