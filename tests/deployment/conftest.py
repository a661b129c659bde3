"""One deployment of three nodes for each file of tests."""

import signal
from collections.abc import Iterator

import pytest

from tests.deployment.net import Net
from tests.deployment.processes import wait_for
from tests.federation import ROWS, make


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Net]:
    folder = tmp_path_factory.mktemp("net")
    deployed = Net(folder, make(folder), ROWS)
    before = signal.signal(signal.SIGTERM, lambda *_: pytest.exit("told to end", 143))
    try:
        deployed.start()
        wait_for("all nodes are online", lambda: deployed.online() == len(ROWS), 90)
        yield deployed
    finally:
        deployed.stop()
        signal.signal(signal.SIGTERM, before)
