"""Without faults: a deployment computes what a simulation computes."""

import pytest

from tests.deployment.net import Net
from tests.federation import same

pytestmark = pytest.mark.deployment


@pytest.mark.parametrize("method", ["fedex", "fedsa", "fslora", "fedsb"])
def test_a_deployment_ends_in_the_bits_of_a_simulation(net: Net, method: str) -> None:
    """One round on three nodes leaves the server in the same state as in a simulation, and the
    clients' scores are the same."""
    simulated = net.simulated(method, method, run__rounds=1)
    submitted = net.submit(method, method, run__rounds=1)
    assert simulated.finished(400) == 0, simulated.tail()
    assert submitted.finished(400) == 0, submitted.tail()
    one, other = net.simulations / method, net.runs / method
    assert same(net.state(one, 1), net.state(other, 1))
    assert same(net.state(net.results / method, 1), net.state(other, 1))
    keys = ("personalised", "loss", "bytes_up", "bytes_down", "clients", "failed")
    (a, b) = (net.metrics(run)[-1] for run in (one, other))
    assert {k: a[k] for k in keys} == {k: b[k] for k in keys}
