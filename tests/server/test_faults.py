"""What goes wrong on one client costs that client's round, never the run."""

import math
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file

from fedlora import training
from fedlora.tensors import modules, select
from fedlora.training import Trained
from tests.federation import Meddler, Watch, federate, kept, meddled, same

BOOKS, FILMS, SHOPS = 1, 2, 3  # nodes


@pytest.fixture(scope="module")
def undisturbed(world, tmp_path_factory):
    return federate(world, tmp_path_factory.mktemp("run"), "fedex", run__keep="all")


def near(one, other):
    torch.testing.assert_close(one.double(), other, rtol=0, atol=2e-6)


def failing(monkeypatch, fit):
    """Training is done by `fit(real, client, round, …)`."""
    real = training.train

    def fake(task, adapter, parts, encoded, settings, seed, *more):
        arguments = (task, adapter, parts, encoded, settings, seed, *more)
        return fit(lambda: real(*arguments), seed[2], seed[3], adapter.trainable(parts))

    monkeypatch.setattr(training, "train", fake)


def assert_others_went_on(ran, missing="films"):
    """Round 2 is the mean over the other two with weights that sum to one; 3 has all again."""
    two = kept(ran, 2)
    assert [k.client for k in two] == sorted({"books", "films", "shops"} - {missing})
    assert sum(k.weight for k in two) == pytest.approx(1)
    for name in select(two[0].update, {"B", "head"}):
        near(ran.state(2)[name], sum(k.weight * k.update[name].double() for k in two))
    assert ran.row(2, missing)["weight"] == 0
    assert (ran.row(2)["clients"], ran.row(3)["clients"]) == (2, 3)


def test_a_client_that_raises_is_failed(world, tmp_path, monkeypatch):
    """With what it raised as the reason."""

    def fit(real, client, number, parameters):
        if (client, number) == ("films", 2):
            raise RuntimeError("the disk is full")
        return real()

    failing(monkeypatch, fit)
    ran = federate(world, tmp_path, "fedit", run__keep="updates")
    assert ran.row(2)["failed"] == {"films": "RuntimeError: the disk is full"}
    assert ran.row(2)["dropped"] == {}
    assert_others_went_on(ran)


@pytest.mark.parametrize("method", ["fedit", "fedex", "fedsa"])
def test_a_loss_that_is_not_a_number_is_dropped(world, tmp_path, monkeypatch, method):
    """And NaN weights with it; under FedSA the client goes on from what it had before."""

    def fit(real, client, number, parameters):
        found = real()
        if (client, number) != ("films", 2):
            return found
        with torch.no_grad():
            for p in parameters:
                p.fill_(math.nan)
        return Trained(math.nan, found.steps, found.rows)

    failing(monkeypatch, fit)
    ran = federate(world, tmp_path, method, run__keep="updates")
    assert ran.row(2)["dropped"] == {
        "films": "its training loss is not finite, or beyond all bounds"
    }
    assert [k.client for k in kept(ran, 2)] == ["books", "shops"]
    assert ran.row(3)["clients"] == 3
    for number in (2, 3):
        assert all(bool(torch.isfinite(t).all()) for t in ran.state(number).values())
        assert math.isfinite(ran.row(number)["loss"])


def put(name, value):
    def change(parcel):
        parcel.tensors[name] = value(parcel.tensors[name])

    return change


QUERY = "bert.encoder.layer.0.attention.self.query.B"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda p: p.tensors.update(foreign=torch.ones(2)), "not those of the method: foreign"),
        (lambda p: p.tensors.pop(QUERY), f"not those of the method: {QUERY}"),
        (put(QUERY, lambda t: t.T.contiguous()), r"query.B is \(4, 32\), not \(32, 4\)"),
        (put(QUERY, lambda t: t / 0), "query.B is not finite"),
        (put(QUERY, lambda t: t + 1000), "above run.norm_bound = 100"),
        (lambda p: p.facts.update(round=1), "it answers another run or round"),
        (lambda p: p.metrics.pop("loss"), "loss is not finite"),
    ],
)
def test_a_bad_update_is_dropped_with_its_reason(world, tmp_path, change, reason):
    """Names, shapes, finite, a norm bound, the round: whatever is wrong, the rest is used."""
    meddler = meddled("train", FILMS, change)
    ran = federate(
        world, tmp_path, "fedit", grid=meddler, run__keep="updates", run__norm_bound=100
    )  # fmt: skip
    (told,) = ran.row(2)["dropped"].values()
    assert ran.row(2)["failed"] == {}
    assert re.search(reason, told), told
    assert_others_went_on(ran)


def test_a_malformed_record_is_dropped(world, tmp_path):
    """An array that is shorter than it says is found before it is read."""

    def meddle(reply):
        about = reply.metadata
        if (about.message_type, about.src_node_id, about.group_id) == ("train", FILMS, "2"):
            array = reply.content["tensors"][QUERY]
            array.data = array.data[:-4]
        return reply

    ran = federate(world, tmp_path, "fedit", grid=Meddler(meddle), run__keep="updates")
    assert "508 bytes" in ran.row(2)["dropped"]["films"]
    assert_others_went_on(ran)


@pytest.mark.parametrize("method", ["fedex", "fedsa"])
def test_too_few_updates_leave_the_state(world, tmp_path, monkeypatch, method):
    """It is noted, the round counts, and what stays on clients is as before the round too."""

    def fit(real, client, number, parameters):
        if client != "books" and number == 2:
            raise RuntimeError("no")
        return real()

    failing(monkeypatch, fit)
    ran = federate(world, tmp_path, method, run__keep="all", run__min_replies=2)
    assert same(ran.state(2), ran.state(1))
    assert not same(ran.state(3), ran.state(2))
    assert any("1 usable updates, fewer than run.min_replies = 2" in n for n in ran.watch.notes)
    if method == "fedsa":
        roster = ran.run.load(2).memory["roster"]["members"]
        assert {id: member["own"] for id, member in roster.items()} == {
            "books": 1, "films": 1, "shops": 1
        }  # fmt: skip


def test_all_clients_fail(world, tmp_path, monkeypatch):
    """The run goes on for those who may come back."""

    def fit(real, client, number, parameters):
        if number == 2:
            raise RuntimeError("no")
        return real()

    failing(monkeypatch, fit)
    ran = federate(world, tmp_path, "fedit", run__keep="all")
    assert same(ran.state(2), ran.state(1))
    assert (ran.row(2)["loss"], ran.row(2)["clients"]) == (None, 0)
    assert ran.row(2)["personalised"] is None
    assert ran.row(3)["clients"] == 3


def test_silence_ends_at_the_deadline_and_a_late_reply_is_ignored(world, tmp_path):
    """One who has not answered by then has failed; what comes later changes nothing."""
    late = []

    def meddle(reply):
        about = reply.metadata
        if (about.message_type, about.src_node_id, about.group_id) == ("train", FILMS, "2"):
            late.append(reply)
            return None
        return [reply, *late] if about.group_id == "3" else reply

    grid = Meddler(meddle)
    ran = federate(
        world, tmp_path, "fedit", grid=grid, run__keep="updates", run__deadline=1.5
    )  # fmt: skip
    assert len(late) == 1
    assert ran.row(2)["failed"] == {"films": "no reply before the deadline"}
    assert_others_went_on(ran)


def test_a_message_that_cannot_be_sent_is_a_failed_client(world, tmp_path):
    """Flower answers None in place of its id."""

    class Unreachable(Meddler):
        def push_messages(self, messages):
            out = []
            for m in messages:
                about = m.metadata
                lost = ("train", FILMS, "2")
                sent = (about.message_type, about.dst_node_id, about.group_id) != lost
                out += self.grid.push_messages([m]) if sent else [None]
            return out

    ran = federate(
        world, tmp_path, "fedit", grid=Unreachable(lambda r: r), run__keep="updates"
    )  # fmt: skip
    assert ran.row(2)["failed"] == {"films": "the message to it could not be sent"}
    assert_others_went_on(ran)


def lose(tmp_path, client, number):
    """Deletes what a client keeps on its disk, once a round was committed."""

    def at(*now):
        if now == (number, "committed"):
            (folder,) = (tmp_path / "run" / "clients").glob(f"*/client-{client}")
            shutil.rmtree(folder)

    return Watch(at)


def test_a_fedex_client_that_lost_its_disk_is_sent_everything(world, tmp_path, undisturbed):
    """And ends with the same W: the same states to the bit, for more bytes in that round."""
    ran = federate(
        world, tmp_path, "fedex", run__keep="all", watch=lose(tmp_path, "films", 1)
    )  # fmt: skip
    for number in (1, 2, 3):
        assert same(ran.state(number), undisturbed.state(number))
    row, usual = ran.row(2, "films"), undisturbed.row(2, "films")
    view = 4 * sum(t.numel() for t in ran.state(1).values())
    assert row["bytes_down"] == usual["bytes_down"] + view  # the round's start is all known else
    assert ran.row(2, "books")["bytes_down"] == undisturbed.row(2, "books")["bytes_down"]


def test_a_fedsa_client_that_lost_its_disk_starts_its_parts_anew(world, tmp_path):
    """It is noted, and from then on the client keeps what it trains again."""
    ran = federate(
        world, tmp_path, "fedsa", run__keep="updates", watch=lose(tmp_path, "films", 1)
    )  # fmt: skip
    assert any("films lost the parts that stayed with it" in n for n in ran.watch.notes)
    first = ran.state(0)
    by_client = {k.client: k for k in kept(ran, 2)}
    assert same(select(by_client["films"].sent, {"B"}), select(first, {"B"}))
    assert not select(by_client["books"].sent, {"B"})
    assert not select({k.client: k for k in kept(ran, 3)}["films"].sent, {"B"})


def lacking(now, held):
    """Entries that a client with `held` lacks of `now`, where P and Q only ever grow."""
    count = 0
    for name, t in now.items():
        before = held.get(name, t[:0])
        if before.shape != t.shape:
            count += t.numel() - before.numel()
        elif not torch.equal(before, t):
            count += t.numel()
    return count


def test_a_fedex_client_that_sat_rounds_out_has_everybodys_model(world, tmp_path):
    """Two of four clients a round: whoever takes part holds, before and after, every tensor of
    the state to the bit, residuals of rounds that it missed included; and was sent no more than
    what it lacked, the new columns only of those."""
    ran = federate(
        world, tmp_path, "fedex", run__rounds=5, run__keep="updates", run__clients_per_round=2,
        run__seed=2, adapter__rank=1, data__partition="iid", data__clients=4,
    )  # fmt: skip
    last, missed = {}, 0
    for number in range(1, 6):
        before, after = ran.state(number - 1), ran.state(number)
        for k in kept(ran, number):
            assert same(k.sent, before)
            held = ran.state(last[k.client]) if k.client in last else {}
            missed += k.client in last and last[k.client] < number - 1
            size = 4 * (lacking(before, held) + lacking(after, before))
            assert ran.row(number, k.client)["bytes_down"] == size
            last[k.client] = number
    assert missed and modules(ran.state(5), "P")
    for client, number in last.items():
        (folder,) = (ran.run.path / "clients").glob(f"*/client-{client}")
        assert same(load_file(folder / f"view-{number:04d}-1.safetensors"), ran.state(number))


def test_nothing_that_is_not_finite_reaches_the_metrics(world, tmp_path):
    """A client's score that is no number is left out of the means."""
    meddler = meddled("evaluate", FILMS, lambda p: p.metrics.update(score=math.nan))
    ran = federate(world, tmp_path, "fedit", grid=meddler)
    assert ran.row(2, "films")["score"] is None
    assert math.isfinite(ran.row(2)["personalised"])
