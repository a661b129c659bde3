from collections.abc import Callable
from pathlib import Path

import pytest

from clients import app
from tests.clients.nodes import Owned
from tests.federation import World
from tests.hostile.asked import Settings, talks_of, texts_of


@pytest.fixture
def owned(world: World, tmp_path: Path) -> Owned:
    """Three owners' files and node settings; whatever was loaded for other nodes is gone."""
    app.forget()
    return Owned(world, tmp_path)


@pytest.fixture
def talks(tmp_path: Path) -> Callable[..., Settings]:
    return talks_of(tmp_path)


@pytest.fixture
def texts(world: World, tmp_path: Path) -> Callable[..., Settings]:
    return texts_of(world, tmp_path)
