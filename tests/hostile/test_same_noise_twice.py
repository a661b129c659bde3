"""Promise: a secret is used once, so that no two releases have the same noise (docs/privacy.md).

The difference of two releases with the same noise is bare of it. A server got a second one for the
price of one where it changed what the release's key left out. That was the run's seed, which makes
the parts that an empty view leaves to the client, or the weights of a model of the same name.
"""

import json

import pytest
import torch

from clients import participant
from tests.clients.nodes import Owned
from tests.federation import World, same
from tests.hostile.server import Server

# One step that moves A, whose gradients are zero while B is, by the noise alone, and far.
PRIVATE = {
    "data__holdout": 0.0,
    "privacy__epsilon": 8.0,
    "train__optimizer": "sgd",
    "train__lr": 300.0,
}
STEPS = 1


@pytest.fixture
def server(world: World, owned: Owned) -> Server:
    return Server(world, owned, {}, **PRIVATE, train__steps=STEPS)


def steps(server: Server) -> int:
    """What the owner's account has of this run."""
    account = json.loads((server.state / "account-books.json").read_text())
    return sum(n for _, _, n in account["spent"]["e"]["train"])


@pytest.mark.parametrize("change", [{"run.seed": 1}, {"privacy.clip": 0.5}, {"run.wire": "bf16"}])
def test_another_order_has_other_noise_and_is_paid_for(
    server: Server, change: dict[str, object]
) -> None:
    """An empty view, twice, with something of the run changed in between: two releases, two
    payments, and what they add to A does not go together."""
    found = []
    for number, changed in enumerate(({}, change), 1):
        server.run |= changed
        reply = server.order()
        assert reply.facts["status"] == "ok", reply.facts
        assert steps(server) == number * STEPS
        found.append(torch.cat([t.flatten() for k, t in reply.tensors.items() if k[-2:] == ".A"]))
    assert all(float(A.std()) > 5 for A in found), "the noise is small: this shows nothing"
    assert abs(float(torch.corrcoef(torch.stack(found))[0, 1])) < 0.2


def test_the_same_order_is_answered_by_the_same_reply(server: Server) -> None:
    """To the bit, without a second payment, however often it comes; another node process too."""
    one = server.order()
    paid = steps(server)
    for _ in range(3):
        again = server.order()
        assert same(one.tensors, again.tensors) and one.metrics == again.metrics
    assert steps(server) == paid


def test_a_reply_is_kept_for_the_last_order_alone(server: Server) -> None:
    """An order before the last is a new release."""
    one = server.order()
    server.order(round=2)
    paid = steps(server)
    again = server.order()
    assert steps(server) > paid and not same(one.tensors, again.tensors)


@pytest.mark.parametrize("point", ["before", "during", "after"])
def test_dying_costs_the_budget_and_never_a_second_use(
    server: Server, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    """The trainer dies before it pays, between payment and reply, or once the reply is kept, and is
    asked the same again: nothing, then twice, then once is paid, and no noise is seen twice."""

    class Killed(BaseException):
        pass

    def killed(*_: object, **__: object) -> None:
        raise Killed

    secrets: list[bytes] = []
    monkeypatch.setattr(
        "fedlora.privacy.entropy.fresh",
        lambda: secrets.append(bytes([len(secrets)]) * 32) or secrets[-1],
    )
    where = {
        "before": "clients.account.Account.spend",
        "during": "fedlora.privacy.training.Updates.told",
        "after": "clients.once.Store.keep_reply",
    }[point]
    with monkeypatch.context() as patch, pytest.raises(Killed):
        if point == "after":
            keep = participant.Store.keep_reply

            def kept(*given: object) -> None:
                keep(*given)  # type: ignore[arg-type]
                raise Killed

            patch.setattr(where, kept)
        else:
            patch.setattr(where, killed)
        server.order()
    drawn = len(secrets)
    assert drawn == {"before": 0, "during": 1, "after": 1}[point]
    reply = server.order()
    assert reply.facts["status"] == "ok"
    assert len(secrets) == {"before": 1, "during": 2, "after": 1}[point]
    assert steps(server) == STEPS * len(secrets)


def test_no_secret_is_on_disk(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither as bytes nor in hexadecimal, in any file of the node; the kept reply is its owner's
    alone to read."""
    secrets = [bytes(range(i, i + 32)) for i in range(9)]
    drawn = iter(secrets)
    monkeypatch.setattr("fedlora.privacy.entropy.fresh", lambda: next(drawn))
    server.order()
    server.order(purpose="evaluate", tag="0001-1")
    files = [p for p in server.state.rglob("*") if p.is_file()]
    text = b"".join(p.read_bytes() for p in files)
    assert not any(s in text or s.hex().encode() in text for s in secrets)
    kept = [p for p in files if p.name.startswith(("reply-", "account-"))]
    assert len(kept) == 3 and all(p.stat().st_mode & 0o077 == 0 for p in kept)
