"""What is lost on its way is asked for once more; what nobody asked for, or another sent, is
refused."""

import torch
from flwr.app import Error, Message
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode

from tests.federation import Meddler, federate, meddled, same

FILMS = 2  # its node


def lost(times, code=ErrorCode.CLIENT_APP_CRASHED):
    """The process of films ends over its order of round 2, so many times."""
    left = [times]

    def meddle(reply):
        about = reply.metadata
        if (about.message_type, about.src_node_id, about.group_id) != ("train", FILMS, "2"):
            return reply
        left[0] -= 1
        if left[0] < 0:
            return reply
        about.__dict__["_src_node_id"] = SUPERLINK_NODE_ID  # which tells of it
        return Message(Error(code, "it ended"), metadata=about)

    return Meddler(meddle)


def orders(grid, node, round):
    found = [m.metadata for m in grid.pushed if m.metadata.message_type == "train"]
    return [m for m in found if (m.dst_node_id, m.group_id) == (node, str(round))]


def test_an_order_that_was_lost_on_its_way_is_sent_once_more(world, tmp_path):
    """In the end every update arrived, so the result is that of a run without the fault."""
    grid = lost(1)
    undisturbed = federate(world, tmp_path / "undisturbed", "fedex")
    ran = federate(world, tmp_path, "fedex", grid=grid)
    assert len(orders(grid, FILMS, 2)) == 2
    assert same(ran.state(3), undisturbed.state(3))
    assert "films is asked once more, after: it ended" in ran.watch.notes[0]


def test_who_is_lost_twice_is_missing(world, tmp_path):
    """The run does not wait for ever, and says who is missing and why."""
    grid = lost(2)
    ran = federate(world, tmp_path, "fedex", grid=grid)
    assert len(orders(grid, FILMS, 2)) == 2
    assert ran.row(2)["failed"] == {"films": "it ended"}
    assert (ran.row(2)["clients"], ran.row(3)["clients"]) == (2, 3)


def test_a_client_that_raised_is_not_asked_again(world, tmp_path):
    """It would raise again."""
    grid = lost(1, ErrorCode.CLIENT_APP_RAISED_EXCEPTION)
    ran = federate(world, tmp_path, "fedex", grid=grid)
    assert len(orders(grid, FILMS, 2)) == 1
    assert ran.row(2)["failed"] == {"films": "it ended"}


def test_an_update_in_another_number_format_is_dropped(world, tmp_path):
    """Twice the bytes that were asked for are not taken, though names and shapes are right."""
    grid = meddled("train", FILMS, lambda parcel: None)  # packs again what it read, in fp32
    ran = federate(world, tmp_path, "fedit", grid=grid, run__wire="fp16")
    assert "see run.wire" in ran.row(2)["dropped"]["films"]


def test_tensors_that_nobody_asked_for_are_refused(world, tmp_path):
    """A client that answers an evaluation with tensors has no score, and the log says why."""

    def smuggle(parcel):
        parcel.tensors["layer.A"] = torch.zeros(3)

    grid = meddled("evaluate", FILMS, smuggle)
    ran = federate(world, tmp_path, "fedit", grid=grid)
    assert (2, "evaluate", "films", "it sends tensors, which nobody asked for") in ran.watch.reasons
    assert ran.row(2, "films")["score"] is None


def test_an_update_that_is_sent_again_counts_once(world, tmp_path, caplog):
    """A replay changes nothing; the log has a line of it."""

    def replayed(reply):
        about = reply.metadata
        of_films = (about.message_type, about.src_node_id) == ("train", FILMS)
        return [reply, reply] if of_films else reply

    once = federate(world, tmp_path / "once", "fedex")
    ran = federate(world, tmp_path, "fedex", grid=Meddler(replayed))
    assert same(ran.state(3), once.state(3))
    assert "node 2: a reply that nobody waits for" in caplog.messages


def test_nobody_answers_for_another(world, tmp_path):
    """A reply counts only from the node that was asked."""

    def foreign(reply):
        about = reply.metadata
        if (about.message_type, about.src_node_id, about.group_id) == ("train", FILMS, "2"):
            about.__dict__["_src_node_id"] = 3
        return reply

    ran = federate(world, tmp_path, "fedex", grid=Meddler(foreign))
    assert ran.row(2)["dropped"] == {"films": "another node answered in its place"}
