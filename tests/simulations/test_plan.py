"""Which clients share passes: chosen from rows, workers and memory, once, and kept with the run."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import strategies
from fedlora import device, settings
from fedlora.progress import Observer
from fedlora.reached import reached
from fedlora.resident import Resident
from fedlora.runs import RunDir
from fedlora.tensors import nbytes, select
from simulations import plan
from simulations.pool import Pool
from simulations.run import simulate
from tests.federation import Crash, Watch, World, crash_at, same

GB = 1e9


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, float], None]:
    """Sets cores and free bytes of the machine."""

    def have(cores: int, free: float) -> None:
        monkeypatch.setattr(os, "cpu_count", lambda: cores)
        found = SimpleNamespace(available=free)
        monkeypatch.setattr(device.psutil, "virtual_memory", lambda: found)

    have(2, 8 * GB)
    return have


def resident(world: World, root: Path, **given: object) -> Resident:
    flat = {k.replace("__", ".", 1): v for k, v in given.items()}
    tree = world.tree(root, {"strategy.name": "fedit", "simulation.workers": None, **flat})
    return Resident(*settings.resolve(tree, strategies.load))


def many(clients: int, **given: object) -> dict[str, object]:
    """So many clients of a few rows each."""
    return {"data__partition": "iid", "data__clients": clients, "data__public": 0, **given}


@pytest.mark.parametrize(
    ("batch", "workers", "sampled", "copies"),
    [
        (8, 0, 40, 14),  # 16 make 128 rows: three jobs, of 14, 14 and 12
        (8, 1, 40, 14),
        (8, 2, 40, 10),  # two jobs a worker: 10 each
        (8, 4, 40, 10),
        (8, 2, 4, 2),  # nobody idle
        (8, 8, 4, 1),
        (1, 0, 40, 40),
        (128, 0, 40, 1),
        (999, 0, 40, 1),
        (100, 0, 40, 2),
        (8, None, 40, 10),  # a worker a core, of which there are two
    ],
)
def test_copies_make_full_passes_and_leave_no_worker_idle(
    world: World,
    tmp_path: Path,
    machine: object,
    batch: int,
    workers: int | None,
    sampled: int,
    copies: int,
) -> None:
    """By rows, workers and the clients of a round, where memory is no matter."""
    given = {"train__batch_size": batch, "simulation__workers": workers}
    mine = resident(world, tmp_path, **many(50, run__clients_per_round=sampled, **given))
    config, why = plan.chosen(mine)
    assert (config.simulation.copies, why) == (copies, "")


def test_memory_is_a_share_of_what_is_free_and_bounds_copies(
    world: World, tmp_path: Path, machine: Callable[[int, float], None]
) -> None:
    """Half of it among all workers, of which half is for adapters."""
    mine = resident(world, tmp_path, **many(40, train__batch_size=1))
    adapter = plan.HELD * nbytes(select(mine.adapter.initial(), mine.adapter.parts))
    config, _ = plan.chosen(mine)
    assert config.simulation.memory == 2000.0 and config.simulation.copies == 20
    room = 2 * 5.5 * adapter / 1e6  # for five clients
    narrow = resident(world, tmp_path, **many(40, train__batch_size=1, simulation__memory=room))
    config, why = plan.chosen(narrow)
    assert (config.simulation.memory, config.simulation.copies, why) == (room, 5, "")


def test_on_a_device_every_worker_needs_a_base(
    world: World, tmp_path: Path, machine: Callable[[int, float], None]
) -> None:
    """And the server none besides, as its own leaves: of two workers that share a device one has
    the room of the base that is there now; a quantised one stays."""
    mine = resident(world, tmp_path, simulation__workers=2, simulation__copies=1)
    mine.adapter.model.to("meta")  # whose free memory is the machine's
    base = sum(t.nbytes for t in mine.adapter.model.parameters())
    machine(2, base + 16e6)
    assert plan.rests(mine.config) and plan.chosen(mine)[0].simulation.memory == 4.0
    packed = mine.config.model.model_copy(update={"quantize": "4bit"})
    mine.config = mine.config.model_copy(update={"model": packed})
    machine(2, 2 * base + 16e6)
    assert not plan.rests(mine.config) and plan.chosen(mine)[0].simulation.memory == 4.0


def test_a_machine_that_is_full_has_one_at_a_time(
    world: World, tmp_path: Path, machine: Callable[[int, float], None]
) -> None:
    """With a memory that a configuration may hold, so that the run can be resumed."""
    machine(64, 1.0)
    config, _ = plan.chosen(resident(world, tmp_path, **many(40, adapter__rank=32)))
    assert config.simulation.copies == 1
    assert type(config).model_validate(config.model_dump()) == config


def test_memory_bounds_passes_as_well(world: World, tmp_path: Path, machine: object) -> None:
    """The other half of it is for the tokens of a pass."""
    small, large = (
        resident(world, tmp_path, simulation__memory=float(m), simulation__copies=2)
        for m in (1, 100)
    )
    assert 1 <= small.most < large.most
    assert large.most == pytest.approx(100 * small.most, rel=0.2)


def test_without_a_setting_passes_have_what_is_free(
    world: World, tmp_path: Path, machine: Callable[[int, float], None]
) -> None:
    """As on a node: the same for a little more or less, so that its bits stay."""
    found = []
    for free in (GB, 1.01 * GB, GB / 100):
        machine(2, free)
        found.append(resident(world, tmp_path).most)
    first, again, little = found
    assert first == again and 10 * little < first < 300 * little
    assert first & (first - 1) == 0
    half = resident(world, tmp_path, simulation__memory=500.0).most
    assert half / 2 < first <= half


def spoil(mine: Resident) -> None:
    """A layer that is given something else than the batch's rows."""
    base = mine.adapter.model.get_base_model()
    name = next(k for k in mine.adapter.shapes if k.endswith("intermediate.dense"))
    outer: Any = base.get_submodule(name.removesuffix(".dense"))
    outer.forward = lambda x: outer.intermediate_act_fn(
        outer.dense(x.flatten(0, 1)).unflatten(0, x.shape[:2])
    )
    mine._reached = reached(mine.task, mine.adapter)  # as where it is made so


def test_a_model_that_cannot_be_stacked_goes_one_by_one(
    world: World, tmp_path: Path, machine: object
) -> None:
    """And says which layer is in the way."""
    mine = resident(world, tmp_path)
    spoil(mine)
    config, why = plan.chosen(mine)
    assert config.simulation.copies == 1
    assert "intermediate.dense is given" in why and "adapter.target_modules" in why


def test_hooks_go_one_by_one(world: World, tmp_path: Path, machine: object) -> None:
    """Where they are asked for; private training by copies shares."""
    budget = {"privacy__epsilon": 3.0}
    hooks = resident(world, tmp_path, privacy__engine="hooks", **budget)
    config, why = plan.chosen(hooks)
    assert config.simulation.copies == 1 and "privacy.engine = hooks" in why
    config, why = plan.chosen(resident(world, tmp_path, **budget))
    assert config.simulation.copies == 2 and not why


@pytest.mark.parametrize("copies", [1, 3, 99])
def test_what_is_given_is_left_alone(
    world: World, tmp_path: Path, machine: object, copies: int
) -> None:
    """Also where the model will not have it: then every pass says so and goes one by one."""
    mine = resident(world, tmp_path, simulation__copies=copies, simulation__memory=5.0)
    spoil(mine)
    config, why = plan.chosen(mine)
    assert (config.simulation.copies, config.simulation.memory, why) == (copies, 5.0, "")
    assert config == mine.config


def simulated(
    world: World, root: Path, watch: Watch, run: RunDir | None = None, **given: object
) -> RunDir:
    """As `fedlora run` does it, or goes on with a run from the configuration that it wrote; in
    this process, whatever the plan's number of workers."""
    mine = resident(world, root, **given)
    config, strategy = mine.config, mine.strategy
    if run:
        config, strategy = settings.resolve(
            settings.read(run.path / "config.toml", []), strategies.load
        )

    @contextmanager
    def watched(log: Path) -> Iterator[Observer]:
        yield watch

    return simulate(config, strategy, Pool(0, 1), watched, run)


def test_the_choice_is_written_down_and_used_again(
    world: World, tmp_path: Path, machine: Callable[[int, float], None]
) -> None:
    """A run goes on to the same bits on a machine with other cores and little free memory, though
    from there nobody would have shared."""
    given = {"run__rounds": 2, "run__keep": "all"}
    whole = simulated(world, tmp_path / "whole", Watch(), **given)
    first = settings.read(whole.path / "config.toml", [])["simulation"]
    assert (first["copies"], first["memory"]) == (2, 2000.0)
    with pytest.raises(Crash):
        simulated(world, tmp_path / "cut", crash_at(1, "committed"), **given)
    run = RunDir.open("run", str(tmp_path / "cut"))
    machine(64, 1.0)
    now = plan.chosen(resident(world, tmp_path))[0].simulation
    assert (now.copies, now.memory) == (1, 1.0)
    again = simulated(world, tmp_path / "cut", Watch(), run, **given)
    assert settings.read(again.path / "config.toml", [])["simulation"] == first
    states = [load(whole, 2), load(again, 2)]
    assert same(*states)


def load(run: RunDir, number: int) -> dict[str, Any]:
    return run.load(number).state


def test_the_log_says_why_nobody_shares(
    world: World, tmp_path: Path, machine: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where clients could have been expected to."""
    monkeypatch.setattr(plan, "_hindrance", lambda resident: "the model is odd")
    watch = Watch()
    run = simulated(world, tmp_path, watch, run__rounds=1)
    assert watch.notes[0].endswith("they cannot share passes: the model is odd")
    assert settings.read(run.path / "config.toml", [])["simulation"]["copies"] == 1
    quiet = Watch()
    simulated(world, tmp_path / "given", quiet, run__rounds=1, simulation__copies=1)
    assert quiet.notes == []
