"""Nodes whose rows are conversations, against a simulation of the same files."""

from pathlib import Path
from typing import Any

from fedlora.config import Data
from simulations import divide
from tests.clients.nodes import Owned
from tests.federation import World, federate, same
from tests.fedlora.tasks import talk

TASK: dict[str, Any] = {
    "model__task": "instruction",
    "adapter__target_modules": "all-linear",
    "data__max_length": 32,
    "run__rounds": 2,
    "run__keep": "all",
}


class Talking(Owned):
    """Files of three owners, each with questions and answers of its own."""

    def __init__(self, root: Path) -> None:
        self.together, self.server = root / "together", root / "server"
        rows = talk.rows(root / "rows.jsonl")
        data = Data(name=str(rows), public=0, test=0.2)
        clients = divide.divide(self.together, data, 0, "conversations")
        self.server.mkdir()
        (self.server / "test.jsonl").write_bytes((self.together / "test.jsonl").read_bytes())
        self.model = talk.save(root / "model")
        self.nodes = {
            client: {
                "client": client,
                "data": str(self.together / f"{client}.jsonl"),
                "model": str(self.model),
                "state-dir": str(root / f"state-{client}"),
            }
            for client in clients
        }


def ran(owned: Talking, root: Path, folder: Path, **more: Any) -> Any:
    root.mkdir()
    world = World(owned.model, folder)
    return federate(world, root, "fedex", **owned.run(folder, **TASK), **more)


def test_conversations_of_nodes_end_in_a_simulation_s_bits(tmp_path: Path) -> None:
    """Every state, and every score and loss, though the coordinator has nobody's rows."""
    owned = Talking(tmp_path)
    whole = ran(owned, tmp_path / "one", owned.together)
    apart = ran(owned, tmp_path / "two", owned.server, grid=owned.grid())
    assert {r["client"] for r in apart.rows("client")} == {"ann", "bob", "cy"}
    for number in (1, 2):
        assert same(whole.state(number), apart.state(number))
        for key in ("score", "test_loss", "personalised", "personalised_loss"):
            assert whole.row(number)[key] == apart.row(number)[key] is not None
