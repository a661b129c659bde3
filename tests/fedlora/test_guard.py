"""What a method returns is held against its contract. Whole runs are in tests/server."""

import math
from functools import cached_property
from typing import ClassVar

import pytest
import torch

from fedlora import guard
from fedlora.errors import MethodError, UserError
from fedlora.strategy import Client, Round, Scaling, Strategy, Update
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
        "layer.D": None,
        "client/b/layer.A": None,
        "server/anything": torch.ones(7),
        "client/a/layer.A": torch.ones(2, 3),
    }
    found = guard.changes(Mine(), "aggregate", changes, STATE)
    assert found.keys() == changes.keys() and found["layer.D"] is found["client/b/layer.A"] is None
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
        ({"layer.A": None}, "None for layer.A: that removes an entry"),
        ({"head.P": None}, "None for head.P: that removes"),
        ({"other.P": None}, "None for other.P: that removes"),
        ({3: None}, "None for 3: that removes"),
        ({"layer.A": torch.full((2, 3), math.inf)}, "layer.A with values that are not finite"),
        ({"server/n": torch.tensor([1.0, math.nan])}, "server/n with values that are not finite"),
        ({"layer.A": torch.full((2, 3), 1e300, dtype=torch.float64)}, "layer.A .* not finite"),
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


def test_a_place_is_finite_but_under_central_privacy():
    """Where the clip makes it no change at all."""

    class Dividing(Strategy):
        def place(self, update, state, round):
            return {k: t / 0 for k, t in update.tensors.items()}

    update = Update(CLIENT, {"layer.A": torch.ones(2, 3)}, STATE, 1.0)
    with pytest.raises(MethodError, match=r"Dividing\.place returned layer\.A .* not finite"):
        guard.placed(Dividing(), update, STATE, Round(1))
    start = {"layer.A": STATE["layer.A"]}
    found = guard.placed(Dividing(), update, STATE, Round(1), start, 1.0)
    assert torch.equal(found["layer.A"], start["layer.A"])


def test_tensors_without_values_or_entries_are_finite():
    """Those of the meta device, and a residual of rank 0."""
    for tensor in (torch.empty(2, 3, device="meta"), torch.ones(2, 3)):
        changes = {"layer.A": tensor, "layer.P": torch.ones(4, 0, device=tensor.device)}
        assert guard.changes(Mine(), "begin", changes, STATE).keys() == changes.keys()


class Sized(Strategy):
    """Ranks and scales as it is told."""

    found: ClassVar[object] = 0

    def rank(self, full, index, client, round):
        return self.found

    def scale(self, scaling, rank):
        return self.found


class Mixed(Sized):
    mixed_ranks = True


@pytest.mark.parametrize("found", [0, -1, 5, 2.0, True, None, "4", math.nan, torch.tensor(4)])
def test_a_rank_is_one_that_a_client_can_have(found, monkeypatch):
    """A whole number from 1 to the full one; the full one unless the method mixes ranks."""
    monkeypatch.setattr(Sized, "found", found)
    with pytest.raises(MethodError, match=r"Mixed\.rank returned .* client a, not a whole number"):
        guard.rank(Mixed(), 4, 0, "a", Round(0))
    for rank, kind in ((4, Sized), (4, Mixed), (1, Mixed)):
        monkeypatch.setattr(Sized, "found", rank)
        assert guard.rank(kind(), 4, 0, "a", Round(0)) == rank
    with pytest.raises(MethodError, match=r"Sized\.rank returned 1 .*mixed_ranks"):
        guard.rank(Sized(), 4, 0, "a", Round(0))


@pytest.mark.parametrize(
    "found", [0, -1.0, math.nan, math.inf, True, None, "2", pytest.param(10**400, id="huge"), 1j]
)
def test_a_scale_is_a_finite_number_above_0(found, monkeypatch):
    """An int or a float."""
    monkeypatch.setattr(Sized, "found", found)
    with pytest.raises(MethodError, match=r"Sized\.scale returned .* for rank 4, not a finite"):
        guard.scale(Sized(), Scaling(4, 8.0), 4)
    monkeypatch.setattr(Sized, "found", 2)
    assert guard.scale(Sized(), Scaling(4, 8.0), 4) == 2.0


def test_a_view_has_the_clients_rank():
    """In A and B, where they are sent; VeRA has neither, and a flat one is told of as no fit."""
    other = Client("b", 1, 1.0)
    with pytest.raises(MethodError, match=r"broadcast returned layer\.A in shape \(2, 3\) for b"):
        guard.view(Strategy(), STATE, other, Round(1))
    for state in ({"layer.d": torch.ones(2)}, {"vera.U": torch.ones(4, 2)}, {"x.A": torch.ones(2)}):
        assert guard.view(Strategy(), state, other, Round(1)).keys() == state.keys()
