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
from simulations import run
from simulations.run import pool, simulate
from tests.federation import World


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
