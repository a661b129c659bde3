"""What a method returns is held against its contract. Whole runs are in tests/server."""

from functools import cached_property
from typing import ClassVar

import pytest
import torch

from fedlora import guard
from fedlora.errors import MethodError, UserError
from fedlora.strategy import Client, Round, Strategy, Update
from fedlora.tensors import Tensors

STATE = {"layer.A": torch.ones(2, 3), "layer.B": torch.ones(4, 2), "head.bias": torch.ones(2)}


class Mine(Strategy):
    def place(self, what):
        raise what


def test_what_a_hook_raises_says_where():
    """A person's mistake stays what it is; a KeyboardInterrupt is none."""
    with pytest.raises(MethodError, match=r"Mine.place raised ValueError: no") as found:
        guard.called(Mine(), "place", ValueError("no"))
    assert isinstance(found.value.__cause__, ValueError)
    with pytest.raises(UserError, match=r"^mend it$"):
        guard.called(Mine(), "place", UserError("mend it"))
    with pytest.raises(KeyboardInterrupt):
        guard.called(Mine(), "place", KeyboardInterrupt())


def test_changes_may_add_memory_and_residuals_and_remove():
    """And come out in fp32, apart from autograd."""
    changes = {
        "layer.A": torch.ones(2, 3, dtype=torch.float64, requires_grad=True),
        "layer.P": torch.ones(4, 1),
        "layer.Q": torch.ones(1, 3),
        "layer.B": None,
        "server/anything": torch.ones(7),
        "client/a/layer.A": torch.ones(2, 3),
    }
    found = guard.changes(Mine(), "aggregate", changes, STATE)
    assert found.keys() == changes.keys() and found["layer.B"] is None
    assert found["layer.A"].dtype == torch.float32 and not found["layer.A"].requires_grad


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (None, "returned NoneType, not a dictionary of tensors"),
        (["layer.A"], "returned list, not a dictionary"),
        ({"layer.A": [1.0]}, "returned list for layer.A, not a tensor"),
        ({"server/n": 3}, "returned int for server/n, not a tensor"),
        ({"layer.C": torch.ones(1)}, "'layer.C', which the state does not have; did you mean"),
        ({"other.D": torch.ones(1)}, "'other.D', which the state does not have"),
        ({"layer.A": torch.ones(3, 2)}, r"layer.A in shape \(3, 2\), where the state has \(2, 3\)"),
    ],
)
def test_a_wrong_result_is_named(result, words):
    """Class, hook, tensor and shapes."""
    with pytest.raises(MethodError, match=words) as found:
        guard.changes(Mine(), "aggregate", result, STATE)
    assert str(found.value).startswith("Mine.aggregate returned ")


PARTS = {"A", "B", "head"}
CLIENT = Client("a", 2, 1.0)


class Keeping(Strategy):
    """Keeps B, trains one part a round, and has a value that it computes once."""

    shared = {"A", "head"}
    seen: ClassVar[list[Tensors]] = []

    @cached_property
    def half(self) -> float:
        return 0.5

    def trains(self, round):
        return {"A", "B"} if round.number == 1 else {"C"}

    def upload(self, tensors, client, round):
        self.seen.append(tensors)
        return {k: self.half * t for k, t in tensors.items()}


def test_upload_sees_what_may_leave_and_nothing_else():
    """Shared, trained in this round, and of this adapter."""
    sent = guard.uploaded(Keeping(), STATE, CLIENT, Round(1), PARTS)
    assert sent.keys() == Keeping.seen[-1].keys() == {"layer.A"}
    with pytest.raises(MethodError, match=r"Keeping\.trains returned C"):
        guard.uploaded(Keeping(), STATE, CLIENT, Round(2), PARTS)
    with pytest.raises(MethodError, match=r"trains leaves nothing to train in round 1"):
        guard.trains(Keeping(), Round(1), {"d"})


def test_writes_are_seen_in_whatever_was_given():
    """In a state, an update or a list of them, and in what shares memory with it; arguments that
    nobody wrote into pass, inference tensors too."""

    class Writes(Strategy):
        def aggregate(self, state, updates, round):
            updates[0].sent["layer.A"].view(-1)[:1] += 1
            return {}

    def update(sent: Tensors) -> Update:
        return Update(CLIENT, dict(STATE), sent, 1.0)

    sent = {"layer.A": torch.zeros(2, 3)}
    with pytest.raises(MethodError, match=r"Writes\.aggregate wrote into layer\.A"):
        guard.called(Writes(), "aggregate", STATE, [update(sent)], Round(1))
    with torch.inference_mode():
        state = {k: t.clone() for k, t in STATE.items()}
    found = guard.called(Strategy(), "aggregate", state, [update(sent)], Round(1))
    assert found.keys() == STATE.keys()


def test_a_view_has_no_memory():
    """What another client sent is the server's to keep."""

    class Leaky(Strategy):
        def broadcast(self, state, client, round):
            return state

    memory = {"client/b/layer.A": torch.ones(2, 3)}
    with pytest.raises(MethodError, match=r"Leaky\.broadcast sends client/b/layer\.A"):
        guard.view(Leaky(), STATE | memory, CLIENT, Round(1))
    assert guard.view(Strategy(), STATE | memory, CLIENT, Round(1)).keys() == STATE.keys()
