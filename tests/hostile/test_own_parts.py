"""Promise: what stays on a client is not handed out by another run, or without the noise that a
private run promises (SECURITY.md).

FedSA keeps B and the head on the client. A server that had them trained without privacy asks for
them in a private run of the same name whose method shares them, with a step that moves nothing.
"""

from tests.clients.nodes import Owned
from tests.federation import World
from tests.hostile.server import Server


def test_parts_trained_without_privacy_are_none_of_a_private_run(
    world: World, owned: Owned
) -> None:
    """The client says that it has no such parts, which is what a lost disk says."""
    plain = Server(world, owned, {}, strategy__name="fedsa", data__holdout=0.0)
    reply = plain.order()
    assert reply.facts["status"] == "ok" and all(k.endswith(".A") for k in reply.tensors)
    private = {"privacy__noise_multiplier": 1e6, "train__optimizer": "sgd", "train__lr": 1e-12}
    server = Server(world, owned, {}, data__holdout=0.0, **private)
    reply = server.order(own=1, round=2)
    assert reply.facts == {"status": "stale", "lost": "own"} and not reply.tensors
    assert plain.order(own=1, round=2).facts["status"] == "ok"
