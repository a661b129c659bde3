"""A round's optimizer against loops written by hand with PEFT's and torch's own."""

from dataclasses import replace

import pytest
import torch
from peft.optimizers import create_lorafa_optimizer, create_loraplus_optimizer
from transformers import get_scheduler

from fedlora import stacking, training
from fedlora.config import Train
from fedlora.optimizers import Turn, factor, fresh
from fedlora.streams import stream
from fedlora.tensors import part_of, select
from fedlora.training import batches
from tests.fedlora import lengths
from tests.fedlora.adapters.padded import in_float64
from tests.fedlora.test_stacking import agree

__all__ = ["in_float64"]  # a fixture
SHARED = frozenset({"A", "B", "head"})
LATE = Turn(2, 3, SHARED)


def loaded(architecture="llama", **fields):
    """An adapter in float64 with a client in it, whose scale is none of the defaults."""
    made = lengths.adapter(architecture, "lora", **fields)
    (member,) = lengths.members(made, [9], residual=True)
    lengths.doubled(made)
    made.load(member.tensors, member.scale)
    return made, member


def ours(made, member, settings, turn=LATE):
    """What `fedlora.training` makes of it, by name."""
    made.load(member.tensors, member.scale)
    arguments = (member.encoded, settings, member.seed)
    training.train(lengths.Task(), made, made.parts, *arguments, turn=turn)
    return made.read(made.parts)


def by_hand(made, member, settings, make, schedule=None, penalty=lambda: 0.0):
    """The same rows in the same order, by an optimizer that is made of the PEFT model."""
    made.load(member.tensors, member.scale)
    made.trainable(made.parts)
    updater = make(made.model)
    paced = schedule(updater) if schedule else None
    task = lengths.Task()
    made.model.train()
    for rows in batches(len(member.encoded), settings, stream(*member.seed, "rows")):
        updater.zero_grad()
        loss = task.losses(made.model, task.batch(member.encoded, rows)).mean() + penalty()
        loss.backward()
        updater.step()
        if paced:
            paced.step()
    made.model.eval()
    return made.read(made.parts)


def equal(one, other, start, within=1e-10):
    """Whether both went to the same place; every tensor has moved much farther than they differ."""
    assert one.keys() == other.keys()
    for name, t in one.items():
        reach = (t - start[name]).abs().max()
        assert reach > 1e-5, name
        assert (t - other[name]).abs().max() <= within * max(1.0, float(t.abs().max())), name


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_lora_plus_is_pefts(architecture, in_float64):
    """The groups, rates and decays of `create_loraplus_optimizer`, the head's among them."""
    made, member = loaded(architecture)
    settings = lengths.train_settings(optimizer="lora-plus", lr_ratio=8.0, weight_decay=0.3)

    def peft(model):
        return create_loraplus_optimizer(
            model, torch.optim.AdamW, lr=0.01, loraplus_lr_ratio=8.0, loraplus_weight_decay=0.3
        )

    found = ours(made, member, settings)
    equal(found, by_hand(made, member, settings, peft), member.tensors)
    plain = ours(made, member, settings.model_copy(update={"optimizer": "adamw"}))
    assert not any(torch.allclose(t, plain[k]) for k, t in select(found, {"B"}).items())


def test_lora_plus_of_a_heads_biases_and_norms_is_pefts(in_float64):
    """RoBERTa's head has biases: they are as fast as B and do not decay."""
    made, member = loaded("roberta")
    settings = lengths.train_settings(optimizer="lora-plus", weight_decay=0.5)

    def peft(model):
        return create_loraplus_optimizer(
            model, torch.optim.AdamW, lr=0.01, loraplus_lr_ratio=16.0, loraplus_weight_decay=0.5
        )

    equal(ours(made, member, settings), by_hand(made, member, settings, peft), member.tensors)


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_lora_fa_is_pefts(architecture, in_float64):
    """`create_lorafa_optimizer`, scale and decay included; in float64, which PEFT's bf16 spares.
    A keeps its bits."""
    made, member = loaded(architecture)
    member = replace(member, scale=0.07)  # so small that s² shows beside Adam's eps
    made.parts -= {"A"}
    settings = lengths.train_settings(optimizer="lora-fa", weight_decay=0.3)

    def peft(model):
        return create_lorafa_optimizer(model, r=4, lora_alpha=8, lr=0.01, weight_decay=0.3)

    found = ours(made, member, settings)
    equal(found, by_hand(made, member, settings, peft), member.tensors)
    assert all(torch.equal(t, member.tensors[k]) for k, t in made.read({"A"}).items())


def test_lora_fa_is_pefts_in_single_precision():
    """To what PEFT's rounding of gradients to bf16 leaves."""
    made = lengths.adapter("bert", "lora")
    (member,) = lengths.members(made, [9])
    made.parts -= {"A"}
    settings = lengths.train_settings(optimizer="lora-fa")

    def peft(model):
        return create_lorafa_optimizer(model, r=4, lora_alpha=8, lr=0.01)

    found, truth = ours(made, member, settings), by_hand(made, member, settings, peft)
    for name, t in select(found, {"B"}).items():
        moved = (truth[name] - member.tensors[name]).norm()
        assert (t - truth[name]).norm() < 0.02 * moved


@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0, 4])
@pytest.mark.parametrize("over", ["federation", "round"])
def test_schedules_are_those_of_transformers(name, warmup, over):
    """Over three rounds of six steps, or each; but that the first step is one on the way up, not
    one of no size. A client sees its round's share of it, whether it was there before or not."""
    settings = Train(schedule=name, warmup=warmup, schedule_over=over)
    rounds = 3 if over == "federation" else 1
    updater = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    theirs = get_scheduler(
        "constant_with_warmup" if name == "constant" else name,
        updater,
        num_warmup_steps=warmup,
        num_training_steps=6 * rounds,
    ).lr_lambdas[0]
    truth = [theirs(i + 1) if i < warmup else theirs(i) for i in range(6 * rounds)]
    for round in (3, 1, 2):
        at = factor(settings, 6, Turn(round, 3))
        first = 6 * (round - 1) if over == "federation" else 0
        assert [at(i) for i in range(6)] == pytest.approx(truth[first : first + 6], abs=1e-12)
    assert min(truth) > 0


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_schedule_moves_the_rate_of_every_step(optimizer, in_float64):
    """A round of five steps, the second of three: torch's optimizer under transformers' schedule
    from its sixth step on; SGD with momentum."""
    made, member = loaded()
    momentum = 0.8 if optimizer == "sgd" else 0.0
    settings = lengths.train_settings(optimizer=optimizer, schedule="cosine", momentum=momentum)

    def plain(model):
        chosen = [p for p in model.parameters() if p.requires_grad]
        if optimizer == "sgd":
            return torch.optim.SGD(chosen, lr=0.01, momentum=0.8)
        return torch.optim.AdamW(chosen, lr=0.01, weight_decay=0.0)

    def schedule(updater):
        theirs = get_scheduler("cosine", updater, num_warmup_steps=0, num_training_steps=15)
        for _ in range(5):
            updater._opt_called = True  # or torch warns of a step that it does not see
            theirs.step()
        return theirs

    found = ours(made, member, settings)
    equal(found, by_hand(made, member, settings, plain, schedule), member.tensors)


def test_each_group_of_lora_plus_has_the_schedule(in_float64):
    """B's rate goes down with A's."""
    made, member = loaded()
    settings = lengths.train_settings(optimizer="lora-plus", schedule="linear")

    def peft(model):
        return create_loraplus_optimizer(model, torch.optim.AdamW, lr=0.01, loraplus_lr_ratio=16.0)

    def schedule(updater):
        return get_scheduler("linear", updater, num_warmup_steps=0, num_training_steps=5)

    found = ours(made, member, settings, Turn())
    equal(found, by_hand(made, member, settings, peft, schedule), member.tensors)


@pytest.mark.parametrize("shared", [SHARED, frozenset({"A"})])
def test_the_proximal_term_is_fedproxs(shared, in_float64):
    """The gradient of μ/2 ‖w − w_sent‖² over what is shared, by autograd; the rest is free."""
    made, member = loaded()
    settings = lengths.train_settings(optimizer="sgd", lr=0.2, proximal=0.7)
    held = {k: t for k, t in made.live().items() if part_of(k) in shared}

    def penalty():
        return 0.35 * sum((t - member.tensors[k].double()).square().sum() for k, t in held.items())

    def plain(model):
        return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.2)

    found = ours(made, member, settings, Turn(shared=shared))
    equal(found, by_hand(made, member, settings, plain, penalty=penalty), member.tensors)
    free = ours(made, member, settings, Turn())
    equal(free, by_hand(made, member, settings, plain), member.tensors)
    assert not any(torch.allclose(found[k], t) for k, t in select(free, {"A"}).items())


def test_clipping_leaves_the_proximal_term_whole(in_float64):
    """Only the rows' gradient is cut: after a step of lr times the clip, which is tiny, the next is
    lr μ times that, far beyond the clip."""
    made, member = loaded()
    settings = lengths.train_settings(optimizer="sgd", lr=0.2, proximal=1e3, clip=1e-3, steps=2)
    found = ours(made, member, settings)
    free = ours(made, member, settings.model_copy(update={"proximal": 0.0, "steps": 1}))
    first = sum(float((free[k] - member.tensors[k]).square().sum()) for k in free) ** 0.5
    second = sum(float((found[k] - free[k]).square().sum()) for k in free) ** 0.5
    assert first == pytest.approx(2e-4, rel=1e-3)
    assert second == pytest.approx(0.2 * 1e3 * first, rel=0.01)


@pytest.mark.parametrize(
    "fields",
    [
        {"optimizer": "sgd", "momentum": 0.9},
        {"optimizer": "lora-plus", "lr_ratio": 4.0},
        {"optimizer": "lora-fa"},
    ],
)
def test_stacked_clients_end_where_they_would_alone(fields, in_float64):
    """With decay, clipping, warm-up, a cosine over the federation and FedProx, at mixed ranks."""
    made = lengths.adapter("bert", "lora")
    members = lengths.members(made, [9, 2, 14], ranks=[1, 4, 2])
    members = [replace(m, turn=LATE) for m in members]
    lengths.doubled(made)
    made.parts -= lengths.train_settings(**fields).freezes
    common = {"clip": 0.5, "weight_decay": 0.1, "schedule": "cosine", "warmup": 7, "proximal": 0.4}
    agree(made, members, made.parts, lengths.train_settings(**common, **fields), 1e-10)


def test_a_stack_has_one_schedule():
    """Clients of other rounds, or of other steps under a schedule that decays, are a mistake of
    whoever put them together."""
    made = lengths.adapter("bert", "lora")
    one, two = lengths.members(made, [4, 9])
    with pytest.raises(AssertionError):
        stacking.train(
            lengths.Task(), made, [one, replace(two, turn=LATE)], {"A"}, lengths.train_settings()
        )
    settings = lengths.train_settings(steps=None, schedule="linear")
    with pytest.raises(AssertionError):
        stacking.train(lengths.Task(), made, [one, two], {"A"}, settings)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lora-plus"])
def test_a_part_of_a_stack_is_moved_where_it_lies(optimizer):
    """Torch's fused kernels would write elsewhere in the stack, and say nothing; whole tensors are
    moved by them, as by the plain ones to rounding."""
    settings, ends = lengths.train_settings(optimizer=optimizer), []
    for rows in (slice(2), slice(4)):
        whole = torch.zeros(4, 6)
        own = torch.nn.Parameter(whole[rows, :3] if rows == slice(2) else whole)
        made = fresh({"layer.A": own}, settings)
        assert made.defaults["fused"] == own.is_contiguous()
        own.grad = torch.ones_like(own)
        made.step()
        ends.append(whole)
    view, full = ends
    assert full.all() and torch.allclose(view[:2, :3], full[:2, :3], rtol=1e-6)
    assert not view[2:].any() and not view[:, 3:].any()
