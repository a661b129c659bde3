"""A node that is cut off for a round and comes back."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fedlora.tensors import Tensors
from fedlora.wire import Parcel
from tests.deployment.net import Net
from tests.deployment.processes import wait_for
from tests.federation import delta, federate, meddled, same

pytestmark = pytest.mark.deployment

FILMS = 2  # its node in a simulation


def silenced(parcel: Parcel) -> None:
    parcel.facts = {"status": "error", "reason": "cut off"}
    parcel.tensors = {}


def stored(net: Net, name: str, client: str, file: str) -> Tensors:
    """What a node keeps of a run."""
    folder = net.nodes[client].state / f"run-{net.experiment(name)}" / f"client-{client}"
    return load_file(folder / f"{file}.safetensors")


@pytest.mark.parametrize("method", ["fedex", "fedsa"])
def test_a_node_cut_off_for_a_round_has_all_that_it_lacks_afterwards(
    net: Net, tmp_path: Path, method: str
) -> None:
    """The round that it misses says so. Back again, it holds the others' W (FedEx), or the others'
    A and its own B of before (FedSA), and the run goes on as if it had sat that round out."""
    held: dict[str, str] = {"fedex": "held:HeldFedEx", "fedsa": "held:HeldFedSA"}
    films, books = net.nodes["films"], net.nodes["books"]
    waits = [films.held(2), books.held(2)]
    role = net.submit(method, held[method], run__rounds=3)
    films.reached(2)
    books.reached(2)
    films.link.cut()
    waits[0].unlink()
    wait_for("films is missed", lambda: "films left out" in net.logged(method), 120)
    films.link.join()
    wait_for("films is back", lambda: net.online() == 3, 90)
    waits[1].unlink()
    assert role.finished(400) == 0, role.tail()

    rows = net.metrics(net.runs / method)
    assert [r["clients"] for r in rows[1:]] == [3, 2, 3]
    assert list(rows[2]["failed"]) == ["films"] and rows[2]["failed"]["films"]
    settings: dict[str, Any] = {"run__deadline": 240.0, "run__min_clients": 3}
    ran = federate(net.world, tmp_path, method, grid=meddled("train", FILMS, silenced), **settings)
    assert same(net.state(net.runs / method, 3), ran.state(3))

    views = {c: stored(net, method, c, "view-0003-1") for c in net.nodes}
    if method == "fedsa":
        assert same(views["films"], views["books"])
        own = {c: stored(net, method, c, "own-0003") for c in net.nodes}
        for client, tensors in own.items():
            store = ran.run.path / "clients" / f"run-{ran.run.experiment}" / f"client-{client}"
            assert same(tensors, load_file(store / "own-0003.safetensors"))
        assert not same(own["films"], own["books"])
    else:
        modules = {name.rpartition(".")[0] for name in views["books"] if name.endswith(".A")}
        assert modules and all({f"{m}.P", f"{m}.D"} & views["books"].keys() for m in modules)
        for module in modules:
            books_w, films_w = (delta(views[c], module, 2.0) for c in ("books", "films"))
            assert torch.equal(books_w, films_w)
