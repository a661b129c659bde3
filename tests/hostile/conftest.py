from pathlib import Path

import pytest

from clients import app
from tests.clients.nodes import Owned
from tests.federation import World


@pytest.fixture
def owned(world: World, tmp_path: Path) -> Owned:
    """Three owners' files and node settings; whatever was loaded for other nodes is gone."""
    app.forget()
    return Owned(world, tmp_path)
