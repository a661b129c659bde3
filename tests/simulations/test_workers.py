"""Worker processes: the same bits as without them, and a death that costs one client a round."""

import math
import multiprocessing
import os
import textwrap
import threading

import pytest
from flwr.app import Message
from flwr.supercore.task_identity import TaskIdentity

from fedlora import wire
from fedlora.config import Config
from fedlora.wire import Parcel
from simulations.grid import InProcessGrid
from simulations.pool import Pool
from tests.federation import Meddler, federate, same

MORTAL = """
    import multiprocessing, os, pathlib, signal
    from strategies.fedex import FedEx

    class Mortal(FedEx):
        def upload(self, tensors, client, round):
            mark = pathlib.Path("died")
            worker = multiprocessing.parent_process() is not None
            if worker and (client.id, round.number) == ("films", 2) and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().upload(tensors, client, round)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The working directory of the workers, with a method in it that kills one of them once."""
    folder = tmp_path_factory.mktemp("workers")
    (folder / "mortal_method.py").write_text(textwrap.dedent(MORTAL))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        yield folder


@pytest.fixture(scope="module")
def pool(world, folder):
    with Pool(2, 1) as pool:
        yield pool


def timeless(rows):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def reversed_threes(*kinds):
    """A grid that delivers the replies of these kinds three at a time, the last one first."""
    held = []

    def meddle(reply):
        if reply.metadata.message_type not in kinds:
            return reply
        held.append(reply)
        if len(held) < 3:
            return None
        replies = held[::-1]
        held.clear()
        return replies

    meddler = Meddler(meddle)
    meddler.window = math.inf  # as on a network: three are under way though nobody works on them
    return meddler


def assert_equal(one, other):
    for number in range(4):
        assert same(one.state(number), other.state(number))
    assert timeless(one.rows()) == timeless(other.rows())
    assert timeless(one.rows("client")) == timeless(other.rows("client"))


def test_workers_change_no_bit(world, folder, pool):
    """Two processes, and one, give the states and metrics of none, dropout included."""
    settings = {"run__keep": "all", "adapter__dropout": 0.1}
    none = federate(world, folder / "none", "fedex", **settings)
    assert_equal(federate(world, folder / "two", "fedex", pool=pool, **settings), none)
    with Pool(1, 1) as single:
        assert_equal(federate(world, folder / "one", "fedex", pool=single, **settings), none)


@pytest.mark.parametrize("method", ["fedex", "fedit"])
def test_the_order_of_replies_changes_no_bit(world, folder, method):
    """For a method that is given the list, and for a mean that is folded as updates come."""
    grid = reversed_threes("train", "evaluate")
    late = federate(world, folder / f"late-{method}", method, grid=grid, run__keep="all")
    assert_equal(late, federate(world, folder / method, method, run__keep="all"))


def test_a_worker_that_is_killed_is_replaced(world, folder, pool):
    """Its client is asked once more, which the notes say with the signal, and nothing is lost."""
    ran = federate(world, folder / "killed", "mortal_method:Mortal", pool=pool)
    assert (folder / "died").exists()
    (note,) = ran.watch.notes
    assert "films is asked once more" in note and "ended with exit code -9" in note
    assert [ran.row(n)["clients"] for n in (1, 2, 3)] == [3, 3, 3]
    undisturbed = federate(world, folder / "undisturbed", "mortal_method:Mortal", pool=pool)
    assert same(ran.state(3), undisturbed.state(3))


def test_workers_change_no_bit_where_clients_share_passes(world, folder, pool):
    """Who shares is the configuration's: two clients and one, at ranks of their own, with dropout
    and AdamW."""
    settings = {
        "run__rounds": 2,
        "run__keep": "all",
        "simulation__copies": 2,
        "strategy__ranks": [1, 2, 3],
    }
    here = federate(world, folder / "here", "fslora", **settings)
    there = federate(world, folder / "there", "fslora", pool=pool, **settings)
    assert all(same(here.state(n), there.state(n)) for n in range(3))
    assert timeless(here.rows("client")) == timeless(there.rows("client"))


def test_a_worker_that_is_killed_in_a_shared_pass_is_replaced(world, folder, pool):
    """The next is given all that shared the pass: nobody has to be asked again, alone, which would
    end in other bits."""
    (folder / "died").unlink(missing_ok=True)
    settings = {"pool": pool, "simulation__copies": 3}
    ran = federate(world, folder / "killed-three", "mortal_method:Mortal", **settings)
    assert (folder / "died").exists() and ran.watch.notes == []
    undisturbed = federate(world, folder / "undisturbed-three", "mortal_method:Mortal", **settings)
    assert same(ran.state(3), undisturbed.state(3))
    assert timeless(ran.rows("client")) == timeless(undisturbed.rows("client"))


def query(ttl: float) -> Message:
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    return Message(wire.pack(Parcel()), 1, "query", ttl=ttl)


def test_a_pool_ends_though_a_worker_is_busy(folder):
    """What is still being worked on is cut short: a client that hangs cannot hold up the end."""
    os.mkfifo(folder / "busy")
    (folder / "hanging_method.py").write_text(
        "import threading\nopen('busy', 'w').close()\nthreading.Event().wait()\n"
    )
    config = Config.model_validate({"strategy": {"name": "hanging_method:Hanging"}})
    others = set(multiprocessing.active_children())
    pool = Pool(1, 1)
    pool.__enter__()
    InProcessGrid(config, 1, folder, pool).push_messages([query(3600.0)])
    (folder / "busy").read_text()  # waits until the worker is there
    end = threading.Thread(target=pool.__exit__, daemon=True)
    end.start()
    end.join(timeout=60)
    assert not end.is_alive()
    assert set(multiprocessing.active_children()) <= others


def test_a_message_past_its_time_is_not_worked_on(tmp_path):
    """Nobody waits for the answer any more, so the next one does not wait for it either."""
    grid = InProcessGrid(Config(), 3, tmp_path, Pool(0, 1))
    ids = list(grid.push_messages([query(1e-9)]))
    assert list(grid.pull_messages(ids)) == []
    grid.push_messages([])
    assert list(grid.pull_messages(ids)) == []
