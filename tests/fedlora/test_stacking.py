"""Clients that share passes against the plain loop, one client after another."""

import math

import pytest
import torch

from fedlora import stacking, training
from fedlora.adapters import PARTS
from fedlora.evaluation import evaluate
from fedlora.tensors import part_of
from tests.fedlora import lengths
from tests.fedlora.adapters.padded import in_float64
from tests.fedlora.adapters.tiny import ARCHITECTURES

__all__ = ["in_float64"]  # a fixture
SIZES = [9, 2, 14]  # rows: the second has less than a batch


def one_by_one(made, members, parts, settings):
    """The oracle: each client alone."""
    found = []
    for m in members:
        made.load(m.tensors, m.scale)
        told = training.train(lengths.Task(), made, parts, m.encoded, settings, m.seed, turn=m.turn)
        trained = {k: p.detach().clone() for k, p in made.live().items() if p.requires_grad}
        found.append((trained, told))
    return found


def agree(made, members, parts, settings, within, most=None):
    """Whether both ways end in the same tensors and say the same, having moved every one."""
    truth = one_by_one(made, members, parts, settings)
    got = stacking.train(lengths.Task(), made, members, parts, settings, most)
    for (own, told), (tensors, plain), m in zip(got, truth, members, strict=True):
        assert own.keys() == tensors.keys()
        for name, tensor in tensors.items():
            scale = tensor.abs().max()
            assert own[name].shape == m.tensors[name].shape
            assert (own[name] - tensor).abs().max() <= within * scale, name
            if tensor.dtype == torch.float64:
                assert (own[name] - m.tensors[name]).abs().max() > 100 * within * scale, name
        assert (told.steps, told.rows) == (plain.steps, plain.rows)
        assert told.loss == pytest.approx(plain.loss, rel=max(within, 1e-5))
    return got


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", PARTS)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_each_client_ends_where_it_would_alone(architecture, kind, optimizer, in_float64):
    """In float64 to 1e-10: every adapter, architecture and head, with unequal rows, a residual, and
    a scale that is not the default."""
    made = lengths.adapter(architecture, kind)
    members = lengths.members(made, SIZES, residual=True)
    lengths.doubled(made)
    settings = lengths.train_settings(optimizer=optimizer, clip=0.5, weight_decay=0.1)
    agree(made, members, made.parts, settings, 1e-10)


@pytest.mark.parametrize(("optimizer", "within"), [("sgd", 1e-6), ("adamw", 1e-4)])
def test_in_single_precision(optimizer, within):
    made = lengths.adapter("bert", "lora")
    members = lengths.members(made, SIZES)
    agree(made, members, made.parts, lengths.train_settings(optimizer=optimizer), within)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_mixed_ranks(optimizer, in_float64):
    """Ranks 4, 1 and 2 in one stack, each at its own scale, decayed and clipped; in float64."""
    made = lengths.adapter("llama", "lora")
    members = lengths.members(made, SIZES, ranks=[1, 4, 2])
    lengths.doubled(made)
    settings = lengths.train_settings(optimizer=optimizer, clip=0.5, weight_decay=0.1)
    agree(made, members, made.parts, settings, 1e-10)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_unequal_steps(optimizer, in_float64):
    """An epoch each, of 3, 1 and 4 steps, the last of each short: who is done moves no more, not
    even by AdamW's moments."""
    made = lengths.adapter("bert", "lora")
    members = lengths.members(made, SIZES)
    lengths.doubled(made)
    settings = lengths.train_settings(optimizer=optimizer, steps=None)
    got = agree(made, members, made.parts, settings, 1e-10)
    assert [told.steps for _, told in got] == [3, 1, 4]


@pytest.mark.parametrize(
    ("kind", "parts"), [("lora", {"B", "head"}), ("lora-sb", {"R"}), ("vera", {"d"})]
)
def test_frozen_parts_differ_too(kind, parts, in_float64):
    """Clients whose frozen parts differ (a FedSA client's B, say) keep their own, and only what is
    trained comes back."""
    made = lengths.adapter("roberta", kind)
    members = lengths.members(made, SIZES)
    lengths.doubled(made)
    got = agree(made, members, parts, lengths.train_settings(), 1e-10)
    assert {part_of(name) for name in got[0][0]} == parts


def test_clipping_is_each_clients_own(in_float64):
    """A client with a large gradient is clipped, its neighbours are not."""
    made = lengths.adapter("bert", "lora")
    members = lengths.members(made, SIZES)
    loud = members[1].tensors
    loud |= {k: 10 * t for k, t in loud.items() if part_of(k) in "AB"}
    lengths.doubled(made)
    agree(made, members, made.parts, lengths.train_settings(optimizer="sgd", clip=2.0), 1e-10)


def test_a_client_without_a_finite_loss_is_alone_with_it():
    made = lengths.adapter("bert", "lora")
    members = lengths.members(made, SIZES)
    broken = members[0].tensors
    broken |= {k: t * float("nan") for k, t in broken.items() if part_of(k) == "A"}
    settings = lengths.train_settings(optimizer="sgd", clip=1.0)
    got = stacking.train(lengths.Task(), made, members, made.parts, settings)
    truth = one_by_one(made, members[1:], made.parts, settings)
    assert math.isnan(got[0][1].loss)
    for (own, _), (tensors, _) in zip(got[1:], truth, strict=True):
        assert all(torch.allclose(own[k], t, atol=1e-6) for k, t in tensors.items())


def test_memory_bounds_every_pass(in_float64):
    """With room for few tokens a step takes many passes, and ends the same."""
    made = lengths.adapter("bert", "lora")
    members = lengths.members(made, SIZES)
    lengths.doubled(made)
    agree(made, members, made.parts, lengths.train_settings(), 1e-10, most=40)
    task = lengths.Task()
    stacking.train(task, made, members, made.parts, lengths.train_settings(), 40)
    assert max(task.tokens) <= 40
    stacking.evaluate(task, made, members, 40)
    assert max(task.tokens) <= 40


def test_the_same_bits_again(global_rng_untouched):
    """Dropout included, whose draws come from the clients' streams."""
    made = lengths.adapter("bert", "lora", dropout=0.3)
    members = lengths.members(made, SIZES)
    settings = lengths.train_settings()
    runs = [stacking.train(lengths.Task(), made, members, made.parts, settings) for _ in range(2)]
    for (one, _), (other, _) in zip(*runs, strict=True):
        assert all(torch.equal(t, other[k]) for k, t in one.items())
    still = lengths.adapter("bert", "lora")
    (off, _), *_ = stacking.train(lengths.Task(), still, members, still.parts, settings)
    assert not any(torch.equal(t, off[k]) for k, t in runs[0][0][0].items())


@pytest.mark.parametrize("kind", PARTS)
def test_scores_are_each_clients_own(kind, in_float64, global_rng_untouched):
    """Stacked or one after another, whatever the ranks; a client without rows has none."""
    made = lengths.adapter("gpt2", kind)
    members = lengths.members(made, [9, 3, 0, 14], [1, 4, 2, 3] if kind == "lora" else None)
    lengths.doubled(made)
    got = stacking.evaluate(lengths.Task(), made, members)
    for m, found in zip(members, got, strict=True):
        made.load(m.tensors, m.scale)
        lengths.doubled(made)
        truth = evaluate(lengths.Task(), made.model, m.encoded)
        assert found.rows == truth.rows == len(m.encoded)
        assert (found.score, found.loss) == pytest.approx((truth.score, truth.loss), nan_ok=True)


def test_clients_of_one_model_are_scored_in_plain_passes():
    """Where nobody's adapter differs, as under averaging, there is nothing to stack."""
    made = lengths.adapter("bert", "lora")
    first = lengths.members(made, [6, 8])
    same = [stacking.Member(first[0].tensors, first[0].scale, m.encoded) for m in first]
    task = lengths.Task()
    got = stacking.evaluate(task, made, same)
    passes = len(task.tokens)
    made.load(same[0].tensors, same[0].scale)
    alone = [evaluate(task, made.model, m.encoded) for m in same]
    assert [g.loss for g in got] == pytest.approx([a.loss for a in alone], rel=1e-5)
    assert len(task.tokens) - passes > passes
