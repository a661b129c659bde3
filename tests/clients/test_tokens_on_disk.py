"""Where the tokens of clients' rows are: a simulation's in one file, an owner's in memory alone."""

from pathlib import Path
from typing import Any

from flwr.app import Context, RecordDict

import strategies
from clients import app
from fedlora import settings
from tests.clients.nodes import Owned
from tests.federation import World


def tokens(folder: Path) -> list[Path]:
    return list(folder.rglob("*tokens*"))


def made(world: World, node: dict[str, Any], **given: Any) -> Any:
    """What a node serves its client from, once that client's rows were asked for."""
    config, _ = settings.resolve(world.tree(Path("runs"), given), strategies.load)
    app.forget()
    context = Context(1, 1, node, RecordDict(), settings.to_flat(config))
    resident = app.resident(context)
    assert len(resident.encoded(app.client_id(context), "train")) > 9
    return resident


def test_processes_of_a_simulation_have_one_file(world: World, tmp_path: Path) -> None:
    """Whichever client a process serves, it finds the table in the simulation's state directory."""
    for index in range(3):
        made(world, {"partition-id": index, "num-partitions": 3, "state-dir": str(tmp_path)})
    assert len(tokens(tmp_path)) == 1


def test_rows_of_an_owner_are_written_nowhere(world: World, tmp_path: Path) -> None:
    """Not beside what the node keeps, and not beside the rows."""
    owned = Owned(world, tmp_path)
    resident = made(world, owned.nodes["books"], **{"data.name": str(owned.server)})
    assert resident.federation.clients == ["books"] and not tokens(tmp_path)
