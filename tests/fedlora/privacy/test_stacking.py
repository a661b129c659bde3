"""DP-SGD of clients that share passes against DP-SGD of each alone, from the same secrets."""

import math

import pytest
import torch

from fedlora import stacking as plain_stacking
from fedlora.adapters import PARTS
from fedlora.config.privacy import Privacy
from fedlora.privacy import stacking, training
from fedlora.privacy.accounting import Mechanism
from fedlora.privacy.entropy import insecure
from tests.fedlora import lengths
from tests.fedlora.adapters.padded import in_float64, traces
from tests.fedlora.privacy.small import drawn

__all__ = ["in_float64"]  # a fixture
SIZES = [9, 4, 14]
RATES = [0.4, 0.6, 0.3]
POISON = 29  # a row that starts with it has no finite loss


class Task(lengths.Task):
    def losses(self, model, batch):
        first = batch["input_ids"][:, 0]
        return super().losses(model, batch) * torch.where(first == POISON, math.nan, 1.0)


def noises(sigma, rates=RATES):
    return [(Mechanism(sigma, q, 1e-3), insecure(3, k)) for k, q in enumerate(rates)]


def private(**fields):
    return Privacy(**{"noise_multiplier": 1.0, "clip": 0.5, "statistics": False, **fields})


def alone(made, members, draws, parts, settings, privacy, task=Task):
    """The oracle: each client by itself."""
    found = []
    for m, draw in zip(members, draws, strict=True):
        made.load(m.tensors, m.scale)
        told = training.train(task(), made, parts, m.encoded, settings, privacy, *draw, turn=m.turn)
        trained = {k: p.detach().clone() for k, p in made.live().items() if p.requires_grad}
        found.append((trained, told))
    return found


def agree(made, members, draws, settings, privacy, parts=None, within=1e-10):
    """Whether both ways end in the same tensors and tell the same; how far each client moved."""
    parts = parts or made.parts
    truth = alone(made, members, draws, parts, settings, privacy)
    task = Task()
    got = stacking.train(task, made, members, draws, parts, settings, privacy)
    moved = []
    for (own, told), (tensors, plain), m in zip(got, truth, members, strict=True):
        assert own.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert own[name].shape == m.tensors[name].shape
            assert (own[name] - tensor).abs().max() <= within * tensor.abs().max(), name
        assert (told.clipped is None) == (not privacy.statistics)
        assert told.clipped == (plain.clipped and pytest.approx(plain.clipped, rel=1e-6))
        assert told.gradient_norm == (
            plain.gradient_norm and pytest.approx(plain.gradient_norm, rel=1e-6)
        )
        moved.append(max(float((own[k] - m.tensors[k]).abs().max()) for k in own))
    return moved


def made_of(kind="lora", ranks=None, sizes=SIZES, architecture="bert"):
    made = lengths.adapter(architecture, kind)
    members = lengths.members(made, sizes, ranks)
    lengths.doubled(made)
    return made, members


@pytest.mark.parametrize("kind", PARTS)
@pytest.mark.parametrize("sigma", [0.0, 0.8])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_each_client_ends_where_it_would_alone(kind, sigma, optimizer, in_float64):
    """Unequal rows and rates, gradients clipped, with the secret's noise and without: to 1e-10."""
    made, members = made_of(kind)
    settings = lengths.train_settings(optimizer=optimizer, weight_decay=0.1)
    moved = agree(made, members, noises(sigma), settings, private())
    assert min(moved) > 1e-4


def test_mixed_ranks(in_float64):
    """A client's noise has the shapes of its own rank, and so the draws that it has alone."""
    made, members = made_of(ranks=[1, 4, 2], architecture="llama")
    for sigma in (0.0, 0.8):
        agree(made, members, noises(sigma), lengths.train_settings(), private())


def test_unequal_steps(in_float64):
    """An epoch each, of 3, 1 and 4 steps: who is done draws, moves and spends no more."""
    made, members = made_of()
    settings = lengths.train_settings(steps=None, optimizer="adamw")
    agree(made, members, noises(0.8), settings, private(statistics=True))


def test_a_step_in_which_a_client_drew_no_row(in_float64):
    """It is noise for that client, in a step that has passes for the others and in one that has
    none."""
    rates = [0.1, 0.3, 0.02]
    steps = [
        drawn(secret, q, n, 5) for (_, secret), q, n in zip(noises(1.0), rates, SIZES, strict=True)
    ]
    some = [[bool(rows) for rows in own] for own in steps]
    assert any(a != b for a, b in zip(some[0], some[1], strict=True)) and not all(some[2])
    made, members = made_of()
    for sigma in (0.0, 0.8):
        agree(made, members, noises(sigma, rates), lengths.train_settings(), private())
    nobody = noises(0.8, [1e-6] * 3)
    agree(made, members, nobody, lengths.train_settings(lr=1e-8), private())


def test_a_draw_larger_than_a_pass_may_be(in_float64):
    """physical_batch bounds the rows of a pass, of all clients together, and changes nothing."""
    made, members = made_of()
    draws, settings = noises(0.8, [0.9] * 3), lengths.train_settings(steps=2)
    agree(made, members, draws, settings, private(physical_batch=2, statistics=True))
    rows = []

    class Counted(Task):
        def batch(self, encoded, indices):
            rows.append(len(indices))
            return super().batch(encoded, indices)

    bounded = private(physical_batch=2)
    stacking.train(Counted(), made, members, draws, made.parts, settings, bounded)
    assert max(rows) == 2


def test_memory_bounds_every_pass(in_float64):
    """Padded tokens too."""
    made, members = made_of()
    draws, settings, task = noises(0.8), lengths.train_settings(), Task()
    got = stacking.train(task, made, members, draws, made.parts, settings, private(), 40)
    assert max(task.tokens) <= 40
    truth = alone(made, members, draws, made.parts, settings, private())
    for (own, _), (tensors, _) in zip(got, truth, strict=True):
        assert all((own[k] - t).abs().max() < 1e-10 for k, t in tensors.items())


@pytest.mark.parametrize("parts", [{"B", "head"}, {"A"}], ids=["B and head", "A"])
def test_only_what_is_trained_has_gradients_and_noise(parts, in_float64):
    """FFA's A, or a B of one's own, is not in what is clipped, though clients differ in it."""
    made, members = made_of()
    agree(made, members, noises(0.8), lengths.train_settings(), private(), parts)


def test_a_row_without_a_finite_gradient_adds_nothing(in_float64):
    """To its own client no more than alone, and to the others nothing at all."""
    made, members = made_of()
    draws = noises(0.8)
    hit = drawn(draws[0][1], RATES[0], SIZES[0], 5)[0][0]
    for i, row in enumerate(members[0].encoded.rows):
        row[0] = POISON if i == hit else min(row[0], POISON - 1)
    agree(made, members, draws, lengths.train_settings(), private(statistics=True))


def test_clipping_is_a_rows_own(in_float64):
    """A client of large gradients is clipped, one of small ones is not, and both are told so."""
    made, members = made_of(sizes=[9, 9])
    loud = members[1].tensors
    loud |= {k: 5 * t for k, t in loud.items() if not k.startswith("head")}
    draws, settings = noises(0.0, [0.5, 0.5]), lengths.train_settings()

    def shares(clip):
        privacy = private(statistics=True, clip=clip)
        found = alone(made, members, draws, made.parts, settings, privacy)
        return [told.clipped for _, told in found]

    clip = next(c for c in (0.5 * 1.5**i for i in range(20)) if shares(c)[0] == 0)
    assert shares(clip)[1] > 0.2
    privacy = private(statistics=True, clip=clip)
    agree(made, members, draws, settings, privacy)
    free = alone(made, members, draws, made.parts, settings, private(clip=1e6))
    cut = alone(made, members, draws, made.parts, settings, privacy)
    distance = [
        max(float((one[k] - other[k]).abs().max()) for k in one)
        for (one, _), (other, _) in zip(free, cut, strict=True)
    ]
    assert distance[0] < 1e-10 and distance[1] > 1e-4


def test_in_single_precision():
    """As it is used."""
    made = lengths.adapter("bert", "lora")
    members = lengths.members(made, SIZES)
    agree(made, members, noises(0.8), lengths.train_settings(optimizer="sgd"), private(),
          within=1e-5)  # fmt: skip


def test_the_same_bits_again(global_rng_untouched):
    """Dropout included, which comes from the secrets."""
    made = lengths.adapter("bert", "lora", dropout=0.3)
    members = lengths.members(made, SIZES)
    settings, privacy = lengths.train_settings(), private(statistics=True)
    draws = noises(0.8)
    one, again = (
        stacking.train(Task(), made, members, draws, made.parts, settings, privacy)
        for _ in range(2)
    )
    for (tensors, told), (same, as_well) in zip(one, again, strict=True):
        assert told == as_well
        assert all(torch.equal(t, same[k]) for k, t in tensors.items())
    still = lengths.adapter("bert", "lora")
    off = stacking.train(Task(), still, members, draws, still.parts, settings, privacy)
    assert not any(torch.equal(t, off[0][0][k]) for k, t in one[0][0].items())


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("is_private", [False, True])
def test_nothing_is_left_on_the_model(is_private, fails):
    """No attribute, hook, flag or gradient: also where a pass fails amid training, but for the
    mode, which every user of the model sets."""
    made = lengths.adapter("roberta", "lora", dropout=0.3)
    members = lengths.members(made, SIZES)
    made.trainable(set())
    made.model.eval()
    before = traces(made)

    class Broken(Task):
        def losses(self, model, batch):
            if fails and len(self.tokens) > 2:
                raise ArithmeticError
            return super().losses(model, batch)

    settings = lengths.train_settings()
    try:
        if is_private:
            draws, privacy = noises(0.8), private(statistics=True)
            stacking.train(Broken(), made, members, draws, made.parts, settings, privacy)
        else:
            plain_stacking.train(Broken(), made, members, made.parts, settings)
    except ArithmeticError:
        assert fails
        assert made.model.training
        made.model.eval()
    assert traces(made) == before
