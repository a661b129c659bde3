"""What a method returns is held against its contract. Whole runs are in tests/server."""

import pytest
import torch

from fedlora import guard
from fedlora.errors import MethodError, UserError
from fedlora.strategy import Strategy

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
