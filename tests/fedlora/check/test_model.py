"""What is told of a model is what the loaded model has."""

from pathlib import Path

import pytest

from fedlora import settings
from fedlora.check import model as look
from fedlora.resident import Resident
from strategies import load
from tests.federation import World


@pytest.mark.parametrize("method", ["fedex", "ffa", "fedsb"])
def test_the_facts_are_the_model_s(world: World, tmp_path: Path, method: str) -> None:
    """Parameters apart from the adapter's, and as many trained as the bill says by shapes alone."""
    tree = world.tree(tmp_path, {"strategy.name": method, "strategy.init": "xs"})
    if method != "fedsb":
        del tree["strategy"]["init"]
    resident = Resident(*settings.resolve(tree, load))
    plain = resident.task.model(0)
    found = look.facts(resident)
    head = sum(p.numel() for p in plain.classifier.parameters())
    assert found.parameters == sum(p.numel() for p in plain.parameters())
    assert (found.vocabulary, found.longest, found.padding) == (32, 16, "[PAD]")
    assert found.layers == {"query": 2, "dense": 2}
    A, B, R = 4 * 64 + 4 * 64, 4 * 64 + 4 * 96, 4 * 16
    expected = {"fedex": A + B, "ffa": B, "fedsb": R}[method] + head
    assert found.trained == expected
    bill = look.bill(resident.config, resident.strategy, clients=3)
    assert bill.traffic.trained_parameters == found.trained
    assert bill.traffic.bytes_up == 4 * expected
