"""The benchmark of private steps: its contenders do the same work, and its arithmetic is right."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

import strategies
from fedlora import settings
from fedlora.adapters import Adapter
from fedlora.config import Config
from fedlora.privacy import entropy
from fedlora.streams import stream
from simulations.benchmarks import memory, private_step, timing
from simulations.benchmarks.contenders import (
    CONTENDERS,
    Batch,
    Workload,
    plain_round,
    private_round,
)
from tests.federation import World
from tests.fedlora.privacy.small import drawn

LOOSE, TIGHT = 1e3, 0.5  # norms of the tiny model's rows are between


def tiny(world: World, root: Path, **privacy: float) -> Config:
    given = {f"privacy.{k}": v for k, v in {"noise_multiplier": 1.0, **privacy}.items()}
    tree = world.tree(root, {"strategy.name": "fedit", "run.seed": 3, **given})
    return settings.resolve(tree, strategies.load)[0]


def moved(load: Workload) -> Adapter:
    """An adapter away from its start, where B is zero and A has no gradient."""
    adapter, draw = undropped(load.adapter()), stream(0, "moved")
    drawn = {
        k: t + 0.3 * torch.randn(t.shape, generator=draw) for k, t in sorted(adapter.live().items())
    }
    adapter.load({k: t.detach() for k, t in drawn.items()})
    return adapter


def undropped(adapter: Adapter) -> Adapter:
    """Without the base's dropout, whose masks are drawn anew in every pass."""
    for module in adapter.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return adapter


def one_by_one(load: Workload, adapter: Adapter, batch: Batch, clip: float) -> list[Tensor]:
    """The mean of clipped gradients, each from a pass of its row alone."""
    parameters, each = adapter.trainable(adapter.parts), []
    for i in range(len(batch["labels"])):
        row = {k: t[i : i + 1] for k, t in batch.items()}
        loss = load.task.losses(adapter.model, row).sum()
        gradients = torch.autograd.grad(loss, parameters)
        norm = torch.cat([g.flatten() for g in gradients]).norm()
        each.append([g * min(1.0, clip / float(norm)) for g in gradients])
    return [torch.stack(g).mean(0) for g in zip(*each, strict=True)]


@pytest.mark.parametrize(
    ("name", "clip"),
    [(k, LOOSE) for k in CONTENDERS] + [(k, TIGHT) for k in CONTENDERS if k != "plain"],
)
def test_every_contender_steps_by_the_same_gradient(
    world: World, tmp_path: Path, name: str, clip: float
) -> None:
    """All private contenders take the mean of clipped gradients, with next to no noise here; where
    nothing is clipped that is the plain one's gradient. They leave no hook and no attribute."""
    load = Workload(tiny(world, tmp_path, clip=clip, noise_multiplier=1e-9), "cpu")
    adapter, (batch,) = moved(load), load.batches(6, 1)
    truth = one_by_one(load, adapter, batch, clip)
    parameters = adapter.trainable(adapter.parts)
    before = [p.detach().clone() for p in parameters]
    with CONTENDERS[name](load, adapter, 6) as step:
        assert step(batch) == 6
        for p, expected in zip(parameters, truth, strict=True):
            assert p.grad is not None
            torch.testing.assert_close(p.grad, expected, rtol=1e-4, atol=1e-6)
    assert all(not torch.equal(p, old) for p, old in zip(parameters, before, strict=True))
    assert not any(
        getattr(m, hooks)
        for m in adapter.model.modules()
        if not hasattr(m, "modules_to_save")
        for hooks in ("_backward_hooks", "_backward_pre_hooks")
    )


def test_clipping_is_tested(world: World, tmp_path: Path) -> None:
    """The two bounds above are one that clips nothing and one that clips."""
    load = Workload(tiny(world, tmp_path), "cpu")
    adapter, (batch,) = moved(load), load.batches(6, 1)
    loose, tight, none = (
        torch.cat([g.flatten() for g in one_by_one(load, adapter, batch, c)])
        for c in (LOOSE, TIGHT, float("inf"))
    )
    assert torch.equal(loose, none)
    assert not torch.allclose(tight, none, rtol=0.1)


def test_a_private_step_is_noised(world: World, tmp_path: Path) -> None:
    """What is timed adds the configured noise, σ C over the batch's rows, and plain adds none."""
    load = Workload(tiny(world, tmp_path), "cpu")
    (batch,) = load.batches(4, 1)
    for name in CONTENDERS:
        adapter = undropped(load.adapter())
        with CONTENDERS[name](load, adapter, 4) as step:
            step(batch)
            found = torch.cat([p.grad.flatten() for p in adapter.trainable(adapter.parts)])
        start, clip = undropped(load.adapter()), float("inf") if name == "plain" else 1.0
        truth = torch.cat([g.flatten() for g in one_by_one(load, start, batch, clip)])
        noise = float((found - truth).std() * 4)
        assert noise < 1e-4 if name == "plain" else 0.9 < noise < 1.1, name


def test_rounds_count_their_rows(world: World, tmp_path: Path) -> None:
    """A private round says the rows that Poisson sampling drew, a plain one those of full batches;
    the time a row would be wrong otherwise."""
    load = Workload(tiny(world, tmp_path), "cpu")
    n, train = len(load.encoded), load.settings.train
    for number in range(2):
        steps = drawn(
            entropy.insecure(0, "benchmark", number), train.batch_size / n, n, train.steps
        )
        assert private_round(load, load.adapter(), number) == sum(map(len, steps))
        assert plain_round(load, load.adapter(), number) == train.steps * train.batch_size


def test_contenders_take_turns() -> None:
    """Each piece goes through all contenders before the next, who comes first rotates, warm-up is
    left out, and times are those of the contender, by row."""
    now, order = 0.0, []

    def contender(name: str, seconds: float):
        def work(piece: int) -> int:
            nonlocal now
            order.append((piece, name))
            now += seconds * (100 if piece == 0 else piece)
            return 2

        return work

    pair = [contender("a", 1.0), contender("b", 3.0)]
    found = timing.alternated(pair, range(4), 1, clock=lambda: now)
    assert order == [(0, "a"), (0, "b"), (1, "b"), (1, "a"), (2, "a"), (2, "b"), (3, "b"), (3, "a")]
    assert found == [[0.5, 1.0, 1.5], [1.5, 3.0, 4.5]]
    assert timing.ratio_of_medians(found[1], found[0]) == 3
    assert timing.spread([4, 1, 3, 2, 5]) == (2, 3, 4)
    assert timing.spread([7]) == (7, 7, 7)


def test_ratios_are_taken_batch_by_batch() -> None:
    """A batch that was slow for everyone tells nothing against anyone."""
    found = private_step._result("cpu", 8, "x", [2.0, 20.0, 4.0], [1.0, 10.0, 4.0])
    assert found.ratio == (1.5, 2.0, 2.0)
    assert found.ratio_of_medians == 1.0
    assert found.milliseconds.median == 8 * 4000


def test_memory_is_that_of_stepping(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process of its own tells a peak for each size, larger for more rows."""
    monkeypatch.setattr(memory, "CONTENDERS", {"stacked": CONTENDERS["stacked"]})
    found = memory.peaks(tiny(world, tmp_path), "cpu", [512, 8])
    assert found.keys() == {("stacked", 8), ("stacked", 512)}
    assert found["stacked", 512] > found["stacked", 8] + 5


def test_it_says_everything_it_measured(
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The command's table and JSON hold every contender at every batch size and a whole round,
    memory less that of plain steps, the machine, the versions and the settings."""
    monkeypatch.setattr(
        private_step,
        "peaks",
        lambda config, device, sizes: {
            (k, n): 10.0 * i + n for i, k in enumerate(CONTENDERS) for n in sizes
        },
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(private_step, "COORDINATES", (10, 20_000))
    path = tmp_path / "found.json"
    arguments = ["--batches", "2,4", "--repeats", "2", "--json", str(path)]
    private_step.main(arguments, tiny(world, tmp_path))
    told, found = capsys.readouterr().out, json.loads(path.read_text())
    assert found.keys() == {"machine", "versions", "settings", "results", "noise"}
    assert found["machine"]["threads"] == 1
    assert found["settings"]["privacy"]["noise_multiplier"] == 1.0
    results = {(r["contender"], r["batch"]): r for r in found["results"]}
    assert results.keys() == {(k, n) for k in CONTENDERS for n in (2, 4)} | {
        ("round", 8),
        ("node's round", 8),
    }
    for i, name in enumerate(CONTENDERS):
        assert name in told
        assert results[name, 4]["memory_over_plain"] == 10 * i
        assert f"{10.0 * i:+.1f}" in told
    assert [n["coordinates"] for n in found["noise"]] == [10, 20_000] and "20,000" in told
    assert results["plain", 2]["ratio"] == {"low": 1, "median": 1, "high": 1}
    for r in results.values():
        assert 0 < r["milliseconds"]["low"] <= r["milliseconds"]["high"]
