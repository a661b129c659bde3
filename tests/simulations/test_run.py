"""A federation on this machine, as `fedlora run` starts it."""

import json
from pathlib import Path

import pytest

import strategies
from fedlora import settings
from fedlora.errors import UserError
from fedlora.progress import Observer
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
