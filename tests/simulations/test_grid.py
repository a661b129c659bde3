"""The in-process grid as any ServerApp may use it, Flower's own included."""

from pathlib import Path

import pytest

import strategies
from fedlora import settings, wire
from simulations.grid import InProcessGrid
from simulations.pool import Pool
from tests.federation import World


@pytest.fixture
def grid(world: World, tmp_path: Path) -> InProcessGrid:
    config, _ = settings.resolve(world.tree(tmp_path, {}), strategies.load)
    return InProcessGrid(config, 3, tmp_path / "clients", Pool(0, 1))


def hello(grid: InProcessGrid, node: int) -> object:
    return grid.create_message(wire.pack(wire.Parcel()), "query", node, "0")


def test_every_message_is_answered_by_its_node(grid: InProcessGrid) -> None:
    """send_and_receive gives one reply for each message, from the client of that node."""
    replies = grid.send_and_receive([hello(grid, node) for node in grid.get_node_ids()])
    said = {r.metadata.src_node_id: wire.unpack(r.content).facts["client"] for r in replies}
    assert said == {1: "books", 2: "films", 3: "shops"}


def test_a_timeout_ends_the_wait(grid: InProcessGrid) -> None:
    """What has not come in time is not waited for."""
    assert grid.send_and_receive([hello(grid, 1)], timeout=0.0) == []
