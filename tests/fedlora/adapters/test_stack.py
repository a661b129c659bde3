"""Many clients' adapters in one stack: what is stacked, filled up and shared."""

from itertools import groupby

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedlora.adapters.stack import Stack, alike, laid
from fedlora.tensors import part_of
from tests.fedlora import lengths
from tests.fedlora.adapters.padded import LENGTHS, batch, close, in_float64, losses, row, traces
from tests.fedlora.adapters.tiny import ARCHITECTURES, KINDS, residual

__all__ = ["in_float64"]  # a fixture
RANKS = [1, 4, 2]
OWNER = [2, 0, 0, 1, 2, 0]  # unequal numbers of rows, in no order


def states(made, ranks=(4, 4, 4)):
    return [lengths.state(made, k, rank) for k, rank in enumerate(ranks)]


def each_alone(made, clients, scales):
    """The oracle: row i through client OWNER[i]'s adapter, one after another."""
    found = []
    for i, k in enumerate(OWNER):
        made.load(clients[k], scales[k])
        found.append(losses(made.model, row(i)).detach())
    return torch.cat(found)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_goes_through_its_owners_adapter(architecture, kind, in_float64):
    """Whoever's rows come in whatever number and order; LoRA's at mixed ranks and scales."""
    made = lengths.adapter(architecture, kind)
    lengths.doubled(made)
    clients = states(made, RANKS if kind == "lora" else (4, 4, 4))
    scales = [1.0] * 3 if kind == "vera" else [0.7, 2.0, 0.7]
    stack = Stack(made, clients, scales)
    with torch.no_grad(), stack.passes() as through, through(OWNER):
        got = losses(made.model, batch(range(len(LENGTHS))))
    assert close(got, each_alone(made, clients, scales))


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_what_ranks_are_filled_up_with_stays_zero(optimizer):
    """After steps with weight decay, beside values that moved; a client's own tensors have none
    of it."""
    made = lengths.adapter("llama", "lora")
    clients = states(made, RANKS)
    stack = Stack(made, clients, [1.0, 0.5, 2.0], {"A", "B"})
    updater = optimizer(stack.leaves, lr=0.1, weight_decay=0.1)
    for _ in range(3):
        updater.zero_grad()
        with stack.passes() as through, through(OWNER):
            losses(made.model, batch(range(len(LENGTHS)))).sum().backward()
        updater.step()
    trained = [name for name in stack.tensors if part_of(name) in "AB"]
    assert trained
    for name in trained:
        for k, own in enumerate(clients):
            outside = stack.tensors[name].detach()[k].clone()
            outside[stack.own(k, name)] = 0.0
            assert not outside.any(), name
            assert stack.client(k)[name].shape == own[name].shape
            assert not torch.equal(stack.client(k)[name], own[name])


def test_what_all_have_in_common_is_not_stacked():
    """Frozen parts that are the same are loaded once; what is trained, or differs, has a copy a
    client, of which only the trained are leaves and come back."""
    made = lengths.adapter("bert", "lora")
    clients = [clients | {} for clients in [states(made)[0]] * 3]
    B = [k for k in clients[0] if part_of(k) == "B"]
    clients[1][B[0]] = clients[1][B[0]] + 1
    stack = Stack(made, clients, [2.0] * 3, {"A"})
    A = {k for k in clients[0] if part_of(k) == "A"}
    assert stack.tensors.keys() == A | {B[0]}
    assert {k for k, t in stack.tensors.items() if t.requires_grad} == A
    assert len(stack.leaves) == len(A) and stack.client(1).keys() == A
    assert stack.scales is None
    with stack.passes() as through, through(OWNER):
        losses(made.model, batch(range(len(LENGTHS)))).sum().backward()
    assert all(p.grad is None for p in made.model.parameters())


def test_scales_alone_tell_clients_apart(in_float64):
    """The same tensors at other scales are other models."""
    made = lengths.adapter("bert", "lora")
    lengths.doubled(made)
    clients, scales = [states(made)[0]] * 3, [0.5, 1.0, 2.0]
    stack = Stack(made, clients, scales)
    with torch.no_grad(), stack.passes() as through, through(OWNER):
        got = losses(made.model, batch(range(len(LENGTHS))))
    assert close(got, each_alone(made, clients, scales))
    assert not close(got, each_alone(made, clients, [1.0] * 3), 1e-3)


def test_a_stack_of_the_same_adapters_is_a_plain_pass():
    """Nothing is put on the model, and the bits are those of the model as loaded."""
    made = lengths.adapter("roberta", "lora")
    clients = [states(made)[0]] * 3
    stack = Stack(made, clients, [0.7] * 3)
    assert not stack.tensors
    before = traces(made)
    with torch.no_grad(), stack.passes() as through, through(OWNER):
        assert traces(made) == before
        got = losses(made.model, batch(range(len(LENGTHS))))
    made.load(clients[0], 0.7)
    with torch.no_grad():
        assert torch.equal(got, losses(made.model, batch(range(len(LENGTHS)))))


def test_a_clients_tensors_are_its_own_afterwards():
    """Clones: what the stack does next does not move them."""
    made = lengths.adapter("bert", "lora")
    stack = Stack(made, states(made), [1.0] * 3, {"B"})
    taken = stack.client(0)
    before = {k: t.clone() for k, t in taken.items()}
    with torch.no_grad():
        for leaf in stack.leaves:
            leaf += 1
    assert all(torch.equal(t, before[k]) and not t.requires_grad for k, t in taken.items())


def test_what_a_pass_costs_does_not_grow_with_the_model(monkeypatch):
    """Layers are looked up once for all passes, and clients with equally many rows each have their
    stacks go in as they are; with others, each has one copy at most."""
    made = lengths.adapter("roberta", "lora")
    stack = Stack(made, states(made), [1.0] * 3, {"A", "B", "head"})
    layers = [made.model.get_base_model().get_submodule(k) for k in made.shapes]
    before, given = traces(made), []
    monkeypatch.setattr(torch.Tensor, "index_select", lambda t, _, index: given.append(index) or t)
    with stack.passes() as through:
        swapped = [m.forward for m in layers]
        monkeypatch.setattr(made, "live", None)
        monkeypatch.setattr(torch.nn.Module, "get_submodule", None)
        with through([0, 0, 1, 1, 2, 2]):
            assert not given
        with through([0, 1, 1, 2, 2]):
            assert not given
        with through([1, 0, 0, 2, 2]):
            assert [i.tolist() for i in given] == [[1, 0, 2]] * len(stack.tensors)
        assert [m.forward for m in layers] == swapped
        monkeypatch.undo()
    assert traces(made) == before


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30))
def test_rows_are_laid_by_owner_and_owners_by_their_rows(owners):
    """Every row once; each owner's beside each other, and owners with equally many."""
    order = laid(owners)
    assert sorted(order) == list(range(len(owners)))
    runs = [(k, len(list(rows))) for k, rows in groupby(owners[i] for i in order)]
    assert len(runs) == len(set(owners))
    assert [n for _, n in runs] == sorted(n for _, n in runs)


def test_clients_of_one_residual_are_alike():
    """Those with none, with the same, with another rank of it, other values, or D, are apart; in
    the order in which they came."""
    made = lengths.adapter("bert", "lora")
    own = states(made, RANKS)
    P = next(k for k in residual(made) if part_of(k) == "P")
    moved = residual(made)
    moved[P] = moved[P] + 1e-6
    clients = [
        own[0],
        own[0] | residual(made),
        own[1],
        own[1] | residual(made, rank=2),
        own[2] | residual(made),
        own[2] | moved,
        own[1] | {k: t for k, t in residual(made).items() if part_of(k) != "D"},
    ]
    assert alike(clients) == [[0, 2], [1, 4], [3], [5], [6]]
    assert alike([]) == []


def test_vera_clients_share_projections():
    """Other projections are another model; other vectors are not."""
    made = lengths.adapter("bert", "vera")
    own = states(made)
    other = own[2] | {"vera.U": own[2]["vera.U"] + 1}
    assert alike([own[0], other, own[1]]) == [[0, 2], [1]]
