"""Updates are folded in client order, whenever they come, and only those that wait are on disk."""

import tracemalloc
from itertools import permutations
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fedlora import wire
from fedlora.errors import MethodError
from fedlora.mean import Mean
from fedlora.strategy import Client, Round, Strategy
from fedlora.streams import stream
from fedlora.tensors import Tensors
from fedlora.wire import Parcel
from server.inbox import Inbox
from strategies.fedit import FedIT

IDS = ["a", "b", "c", "d"]
STATE = {"layer.A": torch.zeros(2, 3), "layer.B": torch.zeros(4, 2)}
UPDATES = {
    id: {k: torch.randn(t.shape, generator=stream(0, id, k)) for k, t in STATE.items()}
    for id in IDS
}


class Listed(Strategy):
    """A method that wants the list; its mean is the same."""

    def aggregate(self, state, updates, round):
        assert [u.client.id for u in updates] == [i for i in IDS if i != "c"]
        assert all(u.sent is STATE for u in updates)
        return super().aggregate(state, updates, round)


class Absent(Strategy):
    def place(self, update, state, round):
        return {**update.tensors, "layer.A": None}


class Modular(Strategy):
    """A sum by modules; says how much memory its updates took, at the most."""

    def aggregate(self, state, updates, round):
        assert all(not isinstance(u.tensors, dict) for u in updates)
        tracemalloc.start()
        try:
            total = {k: sum(u.weight * u.tensors[k] for u in updates) for k in state}
            most.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.reset_peak()
            mean = super().aggregate(state, updates, round)
            most.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        for k, t in mean.items():
            torch.testing.assert_close(total[k], t)
        return total


most: list[int] = []


def inbox(folder: Path, strategy: Strategy | None = None, keep: bool = False) -> Inbox:
    return Inbox(strategy or FedIT(), STATE, Round(1), IDS, folder, keep)


def arrive(box: Inbox, id: str) -> None:
    """Through Flower's records, so that its tensors are views of a message's bytes."""
    tensors = wire.unpack(wire.pack(Parcel(tensors=UPDATES[id]))).tensors
    box.accept(Client(id, 2, 1.0), tensors, STATE, IDS.index(id) + 1.0, {})


def folded(ids: list[str]) -> Tensors:
    mean = Mean()
    for id in ids:
        mean.add(UPDATES[id], IDS.index(id) + 1.0)
    return mean.result()


def same(a: Tensors, b: Tensors) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("strategy", [FedIT(), Listed()])
@pytest.mark.parametrize("keep", [False, True])
def test_order_of_arrival_changes_no_bit(tmp_path: Path, strategy: Strategy, keep: bool) -> None:
    """One client fails, at any time; the others' mean is that of clients in order, and no file is
    left."""
    truth = folded(["a", "b", "d"])
    for order in permutations(IDS):
        box = inbox(tmp_path, strategy, keep)
        for id in order:
            box.refuse(id) if id == "c" else arrive(box, id)
        assert same(box.changes(), truth)
        assert box.weights() == {i: (IDS.index(i) + 1) / 7 for i in order if i != "c"}
        box.clear()
        assert not list(tmp_path.iterdir())


def test_only_what_waits_is_on_disk(tmp_path: Path) -> None:
    """An update in its turn has no file, one that is early has one until its turn, and what its
    client had been sent is forgotten with it."""
    box = inbox(tmp_path)
    arrive(box, "a")
    assert not list(tmp_path.iterdir()) and not box._sent
    arrive(box, "c")
    arrive(box, "d")
    assert len(list(tmp_path.iterdir())) == len(box._sent) == 2
    box.refuse("b")
    assert not list(tmp_path.iterdir()) and not box._sent
    assert all(a.path is None for a in box.arrivals.values())


def test_updates_that_are_to_be_kept_have_files(tmp_path: Path) -> None:
    """All of them, as they came, until `clear`."""
    box = inbox(tmp_path, keep=True)
    for id in ("b", "a", "c", "d"):
        arrive(box, id)
    for id in IDS:
        assert same(load_file(box.arrivals[id].path), UPDATES[id])
    box.clear()
    assert not list(tmp_path.iterdir())


def test_a_list_of_updates_is_read_as_it_is_asked_for(tmp_path: Path) -> None:
    """By modules, it is one tensor of each client that is in memory (numpy's, into which files are
    read, is counted); the default mean has itself and one update, as the first one is copied."""
    clients, size = [str(i) for i in range(6)], 100_000
    state = {f"layer.{i}.A": torch.zeros(size) for i in range(10)}
    box = Inbox(Modular(), state, Round(1), clients, tmp_path, False)
    for id in clients:
        tensors = {k: torch.randn(size, generator=stream(0, id, k)) for k in state}
        box.accept(Client(id, 2, 1.0), tensors, state, 1.0, {})
    most.clear()
    changes = box.changes()
    torch.testing.assert_close(changes["layer.0.A"], mean_of(clients, "layer.0.A", size))
    assert most[0] < 1.1 * 4 * size * 6
    assert most[1] < 1.1 * 4 * size * 10 * 2


def test_updates_that_waited_are_folded_a_tensor_at_a_time(tmp_path: Path) -> None:
    """Beside the mean one tensor is in memory, whatever came before its turn."""
    clients, size = [str(i) for i in range(4)], 100_000
    state = {f"layer.{i}.A": torch.zeros(size) for i in range(10)}
    box = Inbox(FedIT(), state, Round(1), clients, tmp_path, False)
    tracemalloc.start()
    try:
        for id in reversed(clients):
            tensors = {k: torch.randn(size, generator=stream(0, id, k)) for k in state}
            box.accept(Client(id, 2, 1.0), tensors, state, 1.0, {})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.3 * 4 * size * len(state)
    torch.testing.assert_close(box.changes()["layer.3.A"], mean_of(clients, "layer.3.A", size))


def mean_of(clients: list[str], name: str, size: int) -> torch.Tensor:
    return sum(torch.randn(size, generator=stream(0, id, name)) for id in clients) / len(clients)


def test_a_received_message_is_not_written_to(tmp_path: Path) -> None:
    """The first update, which the mean starts from, among others."""
    content = wire.pack(Parcel(tensors=UPDATES["a"]))
    before = {k: bytes(bytearray(a.data)) for k, a in content["tensors"].items()}
    box = inbox(tmp_path)
    box.accept(Client("a", 2, 1.0), wire.unpack(content).tensors, STATE, 1.0, {})
    for id in IDS[1:]:
        arrive(box, id)
    box.changes()
    assert {k: a.data for k, a in content["tensors"].items()} == before


def test_a_place_that_leaves_a_tensor_out_is_refused(tmp_path: Path) -> None:
    """None removes an entry from the state, and means nothing of one update."""
    with pytest.raises(MethodError, match=r"Absent\.place returned NoneType for layer\.A"):
        arrive(inbox(tmp_path, Absent()), "a")
