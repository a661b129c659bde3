"""A federation on this machine, as `fedlora run` starts it."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest

import strategies
from fedlora import settings
from fedlora.errors import UserError
from fedlora.progress import Observer
from fedlora.resident import Resident
from simulations import results, run
from simulations.pool import Pool
from simulations.run import pool, simulate
from tests.federation import World
from tests.fedlora.tasks import talk


@pytest.mark.parametrize("pooled", [False, True])
def test_a_coordinators_data_has_nobody_to_simulate(
    world: World, tmp_path: Path, pooled: bool
) -> None:
    """A folder with the server's rows alone is said to have no clients, and leaves nothing."""
    rows = [json.loads(line) for line in world.data.read_text().splitlines()][:8]
    folder = tmp_path / "server"
    folder.mkdir()
    (folder / "test.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    given = {"data.name": str(folder), "data.partition": "split", "data.pooled": pooled}
    tree = world.tree(tmp_path / "runs", {"strategy.name": "fedit", **given})
    config, strategy = settings.resolve(tree, strategies.load)
    with pytest.raises(UserError, match="server's rows alone and makes no clients"):
        simulate(config, strategy, pool(config), lambda log: Observer())  # type: ignore[arg-type, return-value]
    assert not (tmp_path / "runs").exists()


def test_rows_that_teach_nothing_start_no_run(tmp_path: Path) -> None:
    """All answers are cut off: nothing is trained, and nothing is left."""
    world = World(talk.save(tmp_path / "model"), talk.rows(tmp_path / "rows.jsonl"))
    given = {
        "strategy.name": "fedit",
        "model.task": "instruction",
        "adapter.target_modules": "all-linear",
        "data.max_length": 5,
    }
    config, strategy = settings.resolve(world.tree(tmp_path / "runs", given), strategies.load)
    with pytest.raises(UserError, match=r"longer than 5 tokens.*Set data\.max_length"):
        simulate(config, strategy, pool(config), lambda _: nullcontext(Observer()))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_the_servers_model_leaves_the_device_to_workers(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """Before the first of them loads its own."""
    done: list[str] = []

    class Coordinator:
        def __init__(self, *_: object) -> None: ...

        def serve(self) -> None:
            done.append("serve")
            raise UserError("that is enough")

    monkeypatch.setattr(run, "Coordinator", Coordinator)
    monkeypatch.setattr(Resident, "rest", lambda self: done.append("rest"))
    given = {"strategy.name": "fedit", "simulation.workers": workers}
    config, strategy = settings.resolve(world.tree(tmp_path, given), strategies.load)
    with pytest.raises(UserError, match="enough"):
        simulate(config, strategy, pool(config), lambda _: nullcontext(Observer()))
    assert done == ["rest"] * workers + ["serve"]


def named(world: World, root: Path, names: list[str]) -> settings.Tree:
    """A run on the world's rows, whose three owners are called so."""
    to = dict(zip(("books", "films", "shops"), names, strict=True))
    rows = [json.loads(line) for line in world.data.read_text().splitlines()]
    path = root / "named.jsonl"
    path.write_text("".join(json.dumps({**r, "domain": to[r["domain"]]}) + "\n" for r in rows))
    given = {"strategy.name": "fedsa", "data.name": str(path), "run.keep": "updates"}
    return world.tree(root / "runs", {**given, "run.rounds": 1, "train.steps": 1})


def test_a_client_may_have_any_name_that_people_can_read(world: World, tmp_path: Path) -> None:
    """Each has files of its own, in the run's directory, and its own model."""
    names = ["a/b", "..", "CON"], ["Case", "case", "\N{BOOKS}"]
    for i, three in enumerate(names):
        (tmp_path / str(i)).mkdir()
        resolved = settings.resolve(named(world, tmp_path / str(i), three), strategies.load)
        run = simulate(*resolved, Pool(0, 1), lambda _: nullcontext(Observer()))
        assert len(list(run.round(1).glob("update-*.safetensors"))) == 3
        kept = {p.parent.name for p in run.path.glob("clients/run-*/client-*/own-0001.*")}
        assert len(kept) == 3
        for name in three:
            results.loaded(run, name)


@pytest.mark.parametrize("name", ["a ", "x" * 129, "\N{BOOKS}" * 40, "a\tb", "a\u200bb"])
def test_one_that_nobody_can_have_is_said_before_anything_trains(
    world: World, tmp_path: Path, name: str
) -> None:
    """Rather than that its rows are left out."""
    tree = named(world, tmp_path, [name, "films", "shops"])
    with pytest.raises(UserError, match=r"the client '.* rename it in the column data\.by"):
        simulate(
            *settings.resolve(tree, strategies.load), Pool(0, 1), lambda _: nullcontext(Observer())
        )
    assert not (tmp_path / "runs").exists()
