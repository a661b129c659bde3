"""A client's disk: what the server may still build on is there, and no more."""

import math
import shutil
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from clients.store import Missing, Store
from fedlora.streams import stream
from fedlora.tensorfiles import save
from fedlora.views import View
from fedlora.wire import Parcel


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path, "experiment", "client")


def tensors(value):
    return {"layer.B": torch.full((2, 3), float(value))}


def files(store):
    return sorted(p.name.partition(".")[0] for p in store.path.iterdir())


def test_what_was_kept_comes_back(store):
    """By the round it was kept in, to the bit."""
    store.keep_own(tensors(1), 1, 0)
    store.keep_view(View.of(tensors(2)), "0001-0", "")
    assert torch.equal(store.own(1)["layer.B"], tensors(1)["layer.B"])
    assert torch.equal(store.view("0001-0").tensors["layer.B"], tensors(2)["layer.B"])


@pytest.mark.parametrize(
    ("what", "get"), [("view", lambda s: s.view("0001-0")), ("own", lambda s: s.own(1))]
)
def test_what_is_missing_or_damaged_is_named(store, what, get):
    """The server is told which of the two it has to do without."""
    with pytest.raises(Missing) as found:
        get(store)
    assert found.value.what == what
    store.keep_own(tensors(1), 1, 0)
    store.keep_view(View.of(tensors(1)), "0001-0", "")
    for path in store.path.iterdir():
        path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(Missing):
        get(store)


def test_the_round_before_is_kept(store):
    """The basis, one older in case the server falls back a round, and nothing else."""
    for number in range(1, 6):
        store.keep_own(tensors(number), number, number - 1)
        store.keep_view(View.of(tensors(number)), f"{number:04d}-1", f"{number - 1:04d}-1")
    assert files(store) == [
        "own-0003", "own-0004", "own-0005", "view-0003-1", "view-0004-1", "view-0005-1"
    ]  # fmt: skip


def test_a_round_done_again_starts_from_the_same(store):
    """Whatever the first attempt left, the basis is as it was."""
    for number, basis in ((1, 0), (2, 1), (3, 2), (3, 2), (3, 2)):
        store.keep_own(tensors(number), number, basis)
    assert float(store.own(2)["layer.B"][0, 0]) == 2


def test_rounds_that_counted_for_nothing_do_not_push_out_the_one_that_did(store):
    """A client whose updates were dropped five times is still to go on from round 1."""
    store.keep_own(tensors(1), 1, 0)
    for number in range(2, 7):
        store.keep_own(tensors(number), number, 1)
    assert float(store.own(1)["layer.B"][0, 0]) == 1


@pytest.mark.parametrize("id", ["../../x", "..", "a/b", "a b", "ä", ""])
def test_an_id_is_a_name_and_not_a_path(tmp_path, id):
    """Its folder lies in the experiment's, whatever it is called."""
    store = Store(tmp_path, "e", id)
    store.keep_own(tensors(1), 1, 0)
    assert store.path.parent == tmp_path / "run-e"
    assert [p.parent for p in tmp_path.rglob("own-*")] == [store.path]


def test_names_from_elsewhere_lead_nowhere_else(tmp_path: Path) -> None:
    """An experiment, a client or a tag that is written like a path stays inside the root."""
    store = Store(tmp_path / "root", "..", "../../x")
    store.keep_view(View.of({"a": torch.zeros(1)}), "../../../y", "")
    assert [p.name for p in tmp_path.iterdir()] == ["root"]
    assert len(list((tmp_path / "root").rglob("*.safetensors"))) == 2


def shared(store):
    """The files by content, each with how many names it has."""
    return {p.stem: p.stat().st_nlink for p in (store.path.parent / "views").iterdir()}


def test_clients_that_hold_the_same_have_one_file(tmp_path):
    """By its content; it goes with the last who has it, and a client that is removed takes nothing
    from others."""
    stores = [Store(tmp_path, "e", name) for name in "abc"]
    first, second = View.of(tensors(1)), View.of(tensors(2))
    for store in stores:
        store.keep_view(first, "0001-0", "")
    assert shared(stores[0]) == {first.fingerprint: 4}
    for store in stores[:2]:
        store.keep_view(second, "0002-0", "0001-0")
    assert shared(stores[0]) == {first.fingerprint: 4, second.fingerprint: 3}
    shutil.rmtree(stores[2].path)
    for store in stores[:2]:
        store.keep_view(second, "0003-0", "0002-0")
        store.keep_view(second, "0004-0", "0003-0")
    assert shared(stores[0]) == {second.fingerprint: 7}
    assert float(stores[1].view("0002-0").tensors["layer.B"][0, 0]) == 2


def test_a_damaged_file_is_not_used_again(store):
    """Who holds the same then has it written anew."""
    view = View.of(tensors(1))
    store.keep_view(view, "0001-0", "")
    (path,) = (store.path.parent / "views").iterdir()
    path.write_bytes(path.read_bytes()[:-5])
    store.keep_view(view, "0002-0", "")
    assert store.view("0002-0").fingerprint == view.fingerprint
    with pytest.raises(Missing):
        store.view("0001-0")


def test_other_values_than_were_kept_are_noticed(store):
    """One flipped bit, in a file that is whole otherwise: the view is missing, for all who have the
    file, and is written anew when it is sent again. A file that tells no digest is no better."""
    view = View.of(tensors(1))
    store.keep_view(view, "0001-0", "")
    (path,) = (store.path.parent / "views").iterdir()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(Missing, match="damaged"):
        store.view("0001-0")
    store.keep_view(view, "0002-0", "")
    assert store.view("0002-0").fingerprint == view.fingerprint
    save(view.tensors, store.path / "view-0003-0.safetensors")
    with pytest.raises(Missing, match="damaged"):
        store.view("0003-0")


@pytest.mark.parametrize("links", [True, False])
def test_a_view_that_stays_the_same_has_another_name(store, monkeypatch, links):
    """One file where links are known, else a copy; done again too; and what stands for the basis
    is still there, whatever a later view is."""
    if not links:
        monkeypatch.setattr("os.link", Mock(side_effect=OSError))
    store.keep_view(View.of(tensors(1)), "0001-1", "")
    for _ in range(2):
        store.keep_same_view("0002-0", "0001-1")
        assert float(store.view("0002-0").tensors["layer.B"][0, 0]) == 1
    held, same = sorted(store.path.iterdir())  # and nothing else is left
    assert held.samefile(same) is links
    store.keep_view(View.of(tensors(2)), "0002-0", "0001-1")
    assert float(store.view("0001-1").tensors["layer.B"][0, 0]) == 1


def test_a_reply_is_there_again_for_its_own_order_alone(store):
    """Tensors in their formats, facts and metrics with an infinite one; the last of each purpose;
    for its owner alone to read. One that is damaged is none."""
    reply = Parcel(
        {"status": "ok", "round": 3},
        {"layer.A": torch.randn(2, 3, generator=stream(0, "reply")).bfloat16()},
        {"epsilon": math.inf, "steps": 3.0},
    )
    assert store.reply("train", "one") is None
    store.keep_reply("train", "one", reply)
    store.keep_reply("evaluate", "one", Parcel({"status": "ok"}, {}, {}))
    again = store.reply("train", "one")
    assert (again.facts, again.metrics) == (reply.facts, reply.metrics)
    assert torch.equal(again.tensors["layer.A"], reply.tensors["layer.A"])
    assert store.reply("train", "other") is None and not store.reply("evaluate", "one").tensors
    files = sorted(store.path.iterdir())
    assert [p.stat().st_mode & 0o777 for p in files] == [0o600, 0o600]
    store.keep_reply("train", "two", reply)
    assert store.reply("train", "one") is None
    for path in files:
        path.write_bytes(path.read_bytes()[:-3])
    assert store.reply("train", "two") is None
