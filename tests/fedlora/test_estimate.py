"""Gradient estimates of a resident model against autograd through the plain one.

Shapes: G (m, n) of query (32, 32) and intermediate.dense (48, 32).
"""

import pytest
import torch
import torch.nn.functional as F

import strategies
from fedlora import estimate, settings
from fedlora.resident import Resident
from fedlora.streams import stream
from fedlora.tensors import select


@pytest.fixture(scope="module")
def resident(world, tmp_path_factory):
    given = {"strategy.name": "fedsb", "adapter.rank": 8, "train.lr": 5e-3}
    tree = world.tree(tmp_path_factory.mktemp("r"), given)
    return Resident(*settings.resolve(tree, strategies.load))


@pytest.mark.parametrize(("split", "client", "rows"), [("public", "", 16), ("train", "books", 20)])
def test_gradients_are_summed_over_seeded_rows(resident, split, client, rows):
    """At the pretrained model whatever the adapter holds just then, over exactly so many rows."""
    modules = list(resident.adapter.shapes)
    head = select(resident.adapter.initial(), {"head"})
    drawn = {k: t + 0.1 for k, t in resident.adapter.initial().items()}
    resident.load(drawn, 1.0)
    found = estimate.summed(resident, split, client, modules, rows, head)

    encoded = resident.encoded(client, split)
    order = torch.randperm(len(encoded), generator=stream(0, "gradient", client))[:rows].tolist()
    assert len(order) == rows
    model = resident.task.model(0)
    weights = [model.get_submodule(m).weight for m in modules]
    batch = resident.task.batch(encoded, order)
    labels = batch.pop("labels")
    loss = F.cross_entropy(model(**batch).logits, labels, reduction="sum")
    for module, g in zip(modules, torch.autograd.grad(loss, weights), strict=True):
        torch.testing.assert_close(found[module], g, rtol=1e-4, atol=1e-5)


def test_all_layers_share_passes_as_large_as_memory_has_room_for(resident, monkeypatch):
    """With little room there are more passes of fewer tokens, and the sums are the same."""
    modules = list(resident.adapter.shapes)
    head = select(resident.adapter.initial(), {"head"})
    found, passes = [], []
    for room in (10**9, 300_000):
        seen = []
        note = resident.adapter.model.register_forward_pre_hook(
            lambda _, args, given, seen=seen: seen.append(given["input_ids"].numel()),
            with_kwargs=True,
        )
        monkeypatch.setattr(estimate, "room", lambda _, room=room: room)
        found.append(estimate.summed(resident, "public", "", modules, 16, head))
        note.remove()
        passes.append(seen[1:])  # the first is the longest row's, which is measured
    assert len(passes[0]) < len(passes[1]) and max(passes[1]) < max(passes[0])
    for module in modules:
        torch.testing.assert_close(found[1][module], found[0][module], rtol=1e-4, atol=1e-6)


def test_groups_stay_within_their_bytes_and_lose_no_layer():
    """In the model's order; a layer larger than a group is one by itself."""
    shapes = {"a": (10, 10), "b": (10, 20), "c": (50, 50), "d": (10, 10), "e": (10, 10)}
    assert list(estimate.groups(shapes, 4 * 300)) == [["a", "b"], ["c"], ["d", "e"]]


def test_everyone_has_the_same_test_matrix():
    """It depends on the seed and the module alone, and is standard normal."""
    one = estimate.test_matrix(0, "layer", 500, 8)
    assert torch.equal(one, estimate.test_matrix(0, "layer", 500, 8))
    assert not torch.equal(one, estimate.test_matrix(0, "other", 500, 8))
    assert abs(float(one.mean())) < 0.05 and abs(float(one.std()) - 1) < 0.05
