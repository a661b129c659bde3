"""A trainer whose node has two devices, here on the CPU: its processes end as one."""

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from flwr.app import Context

from clients import proxy
from clients.channel import Place
from tests.clients.test_trainer import ENDS, endless, facts, made, rows, sent, training, until
from tests.federation import World

pytestmark = pytest.mark.deployment

__all__ = ["rows"]  # a fixture

TWO = """
import sys
from pathlib import Path
from clients.owner import Owner
Owner.devices = property(lambda own: ("cpu", "cpu"))
from clients.trainer import serve
serve(Path(sys.argv[1]))
"""


@pytest.fixture
def node(world: World, rows: Path, tmp_path: Path) -> Iterator[tuple[Context, psutil.Process]]:
    """A node, and its trainer."""
    with made(world, rows, tmp_path) as context:
        Place(tmp_path).folder.mkdir(mode=0o700)
        started = subprocess.Popen([sys.executable, "-c", TWO, str(tmp_path)])
        until(lambda: proxy.healthy(Place(tmp_path)))
        yield context, psutil.Process(started.pid)
        started.kill()
        started.wait()


def under_way(context: Context) -> tuple[threading.Thread, list[Any]]:
    """A round of training that would take minutes, once it has begun; and what comes of it."""
    parcel, said = endless(context), []

    def ask() -> None:
        try:
            said.append(proxy.answered(sent(parcel, "train", ttl=600.0), context))
        except proxy.TrainerError as e:
            said.append(e)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    until(lambda: training(context))
    return asking, said


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_is_left_of_a_trainer(
    node: tuple[Context, psutil.Process], number: signal.Signals
) -> None:
    """In the middle of a round, whichever way it ends."""
    context, trainer = node
    under_way(context)
    (other,) = trainer.children()
    trainer.send_signal(number)
    until(lambda: not other.is_running())


def test_a_device_s_end_is_told_and_mended(node: tuple[Context, psutil.Process]) -> None:
    """The round ends with an error in the same trainer; both answer the next message."""
    context, trainer = node
    asking, said = under_way(context)
    (other,) = trainer.children()
    other.kill()
    asking.join(ENDS)
    assert facts(said[0])["status"] == "error"
    assert facts(proxy.forward(sent(), context))["status"] == "ok"
    (another,) = trainer.children()
    assert another.pid != other.pid


def test_who_is_gone_is_worked_for_no_longer(node: tuple[Context, psutil.Process]) -> None:
    """The processes are started anew for the next message."""
    context, trainer = node
    assert facts(proxy.forward(sent(), context))["status"] == "ok"
    (first,) = trainer.children()
    with pytest.raises(proxy.TrainerError, match="DEADLINE_EXCEEDED"):
        proxy.answered(sent(endless(context), "train", ttl=5.0), context)
    assert facts(proxy.forward(sent(), context))["status"] == "ok"
    assert not first.is_running()
