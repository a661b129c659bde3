"""What is told of a model is what the loaded model has."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer, BertModel

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
    assert found.drawn == ["classifier.bias", "classifier.weight"]
    bill = look.bill(resident)
    assert bill.traffic.trained_parameters == found.trained
    assert bill.traffic.bytes_up == 4 * expected


def test_what_is_drawn_is_told_and_paid_for(world: World, tmp_path: Path) -> None:
    """A head of three labels, and a pooler that the base lacks."""
    base = BertModel.from_pretrained(world.model, add_pooling_layer=False)
    base.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(world.model).save_pretrained(tmp_path / "model")
    labels = ["bad", "good", "so-so"]
    tree = world.tree(tmp_path, {"model.name": str(tmp_path / "model"), "data.labels": labels})
    resident = Resident(*settings.resolve(tree, load))
    found, bill = look.facts(resident), look.bill(resident)
    head, pooler = 3 * 32 + 3, 32 * 32 + 32
    assert found.drawn == [
        *("bert.pooler.dense.bias", "bert.pooler.dense.weight"),
        *("classifier.bias", "classifier.weight"),
    ]
    assert found.trained == 4 * 64 + 4 * 64 + 4 * 64 + 4 * 96 + head + pooler
    assert bill.traffic.trained_parameters == found.trained
    assert bill.traffic.bytes_up == 4 * found.trained
