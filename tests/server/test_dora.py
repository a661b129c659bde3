"""A federation on DoRA: magnitudes are averaged or stay at home, as the method says."""

import pytest
import torch

from fedlora.tensors import select
from tests.federation import federate, kept, same


@pytest.mark.parametrize(("method", "sent"), [("fedit", "ABM"), ("ffa", "BM"), ("fedsa", "A")])
def test_what_is_shared_is_averaged(world, tmp_path, method, sent):
    """Each part that the method shares is its mean over clients, by their weights, in float64."""
    ran = federate(world, tmp_path, method, run__rounds=1, run__keep="updates", adapter__dora=True)
    start, state = ran.state(0), ran.state(1)
    updates = kept(ran, 1)
    assert len(updates) == 3 and not ran.row(1)["failed"] and not ran.row(1)["dropped"]
    for part in "ABM":
        names = list(select(state, {part}))
        assert names and all((k in u.update) == (part in sent) for u in updates for k in names)
        if part not in sent:
            assert same(select(state, {part}), select(start, {part}))
            continue
        for name in names:
            mean = sum(u.weight * u.update[name].double() for u in updates)
            torch.testing.assert_close(state[name].double(), mean, rtol=0, atol=1e-6)
            assert not torch.equal(state[name], start[name])
