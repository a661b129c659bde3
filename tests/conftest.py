"""For every test: no network, one thread, the same examples each time."""

import os

# Before the libraries are imported, which read these once.
os.environ.update(
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    FLWR_TELEMETRY_ENABLED="0",
    FLWR_DISABLE_UPDATE_CHECK="1",
)

import random
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import settings

if TYPE_CHECKING:
    from tests.federation import World

torch.set_num_threads(1)
settings.register_profile("fedlora", deadline=None, derandomize=True, database=None)
settings.load_profile("fedlora")


@pytest.fixture
def global_rng_untouched() -> Iterator[None]:
    """Fails the test if it left a global random generator (torch, Python, NumPy) elsewhere."""

    def states() -> tuple[list[int], object, str]:
        return torch.get_rng_state().tolist(), random.getstate(), repr(np.random.get_state())

    before = states()
    yield
    assert states() == before, "a global random generator moved"


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator["World"]:
    """A tiny model and its rows; see tests/federation.py."""
    import datasets

    from tests import federation

    cache = str(tmp_path_factory.mktemp("datasets"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
        patch.setenv("HF_DATASETS_CACHE", cache)  # for worker processes
        yield federation.make(tmp_path_factory.mktemp("world"))
