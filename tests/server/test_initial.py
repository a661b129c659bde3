"""A federation that begins with a part of W0 in its adapters."""

import pytest

from fedlora.tensors import nbytes, select
from tests.federation import federate, kept, same


@pytest.mark.parametrize(("method", "first"), [("fedit", "PQ"), ("ffa", "APQ"), ("fedsa", "BPQ")])
def test_the_residual_travels_once(world, tmp_path, method, first):
    """With adapter.init = pissa the server scores W0 at round 0 as with any other; clients get what
    was taken out at first contact alone, and it stays as it was."""
    given = {"run__rounds": 2, "run__keep": "updates", "run__baseline": True}
    plain = federate(world, tmp_path / "plain", method, **given)
    ran = federate(world, tmp_path / "pissa", method, adapter__init="pissa", **given)
    assert ran.row(0)["test_loss"] == pytest.approx(plain.row(0)["test_loss"], abs=1e-5)
    once = select(ran.state(0), {"P", "Q"})
    assert once and same(select(ran.state(2), {"P", "Q"}), once)
    assert all(same(select(k.sent, {"P", "Q"}), once) for k in kept(ran, 2))
    spared = 3 * nbytes(select(ran.state(0), set(first)))
    assert ran.row(1)["bytes_down"] - ran.row(2)["bytes_down"] >= spared
    assert ran.row(2)["bytes_up"] == plain.row(2)["bytes_up"]
    assert ran.row(2)["failed"] == ran.row(2)["dropped"] == {}
