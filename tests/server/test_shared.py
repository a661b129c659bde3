"""What is made once for all clients of a phase, and that nothing is kept of what is one's own."""

import weakref

import pytest
import torch

from fedlora.strategy import Round
from fedlora.tensors import Tensors
from fedlora.views import View
from server.shared import Recalled, Shared


@pytest.fixture
def state() -> Tensors:
    return {"x.A": torch.full((2, 3), 1 / 3), "x.P": torch.ones(2, 3) / 3}


@pytest.fixture
def shared(state: Tensors) -> Shared:
    made = Shared({"A"})
    made.begin(state, Round(1, wire=torch.bfloat16))
    return made


def test_a_view_is_told_by_what_will_be_held(shared: Shared, state: Tensors) -> None:
    """Its digests are those that the client makes of what arrives, trained parts rounded and others
    not; two clients in a row share them."""
    manifest, fingerprint = shared.manifest({**state})
    assert shared.manifest({**state})[0] is manifest
    arrived = {"x.A": state["x.A"].bfloat16().float(), "x.P": state["x.P"]}
    assert fingerprint == View.of(arrived).fingerprint != View.of(state).fingerprint
    recalled = Recalled(lambda: state, shared.assigned)
    assert all(torch.equal(recalled[k], t) for k, t in arrived.items())
    assert (recalled | {"y": state["x.P"]}).keys() == {"x.A", "x.P", "y"}


def test_an_empty_view_has_its_fingerprint_too(shared: Shared) -> None:
    """At first, and after another."""
    assert shared.manifest({}) == ({}, View.of({}).fingerprint)


def test_nothing_is_kept_of_what_is_one_client_s(shared: Shared, state: Tensors) -> None:
    """Nor of a state that is no more; and another tensor in its place is another."""
    own = {"x.A": torch.zeros(2, 3)}
    gone = weakref.ref(own["x.A"])
    first = shared.manifest(own)[1]
    shared.arrays(own)
    shared.arrays({})
    del own
    assert gone() is None
    assert shared.manifest({"x.A": torch.ones(2, 3)})[1] != first

    before = weakref.ref(state["x.A"])
    shared.manifest(state)
    shared.arrays(state)
    state["x.A"] = torch.ones(2, 3)
    shared.begin(state, Round(2, wire=torch.bfloat16))
    assert before() is None


def test_digests_last_as_long_as_the_state(
    shared: Shared, state: Tensors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a round left as it was is not read again; the bytes go once all have theirs."""
    shared.manifest(state)
    read: list[str] = []
    monkeypatch.setattr("server.shared.blocks", lambda name, _: read.append(name) or ["0"])
    changed = {**state, "x.A": torch.zeros(2, 3)}
    shared.begin(changed, Round(2, wire=torch.bfloat16))
    shared.manifest(changed)
    assert read == ["x.A"]
    arrays = shared.arrays(changed)
    assert shared.arrays(changed)["x.A"] is arrays["x.A"]
    shared.end()
    assert shared.arrays(changed)["x.A"] is not arrays["x.A"]
