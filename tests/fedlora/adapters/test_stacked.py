import pytest
import torch
from torch import nn
from transformers import AlbertConfig, AlbertForSequenceClassification

from fedlora import config
from fedlora.adapters import Adapter
from fedlora.errors import UserError
from fedlora.streams import forked
from fedlora.tensors import select
from tests.fedlora.adapters.padded import (
    batch,
    close,
    gradients,
    in_float64,
    losses,
    one_pass,
    row,
    traces,
    undropped,
)
from tests.fedlora.adapters.tiny import ARCHITECTURES, KINDS, SIZES, adapter, drawn, residual

__all__ = ["in_float64"]  # a fixture
K, B = 3, 2
SHARES = [B] * K
CLIENTS = [range(k * B, (k + 1) * B) for k in range(K)]


def clients(made, parts):
    """K clients' states, which differ in these parts, and the parts' copies (K, …) as leaves."""
    common = drawn(made)
    chosen = [select(drawn(made, f"client {k}"), parts) for k in range(K)]
    states = [common | own for own in chosen]
    stacks = {
        name: torch.stack([c[name] for c in chosen]).double().requires_grad_() for name in chosen[0]
    }
    return states, stacks


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", KINDS)
def test_each_copy_is_its_clients_own_model(architecture, kind, in_float64, global_rng_untouched):
    """One pass over three clients' rows, padded together, gives the losses and gradients that each
    client's own adapter gives row by row, with a residual and a scale that is not the default."""
    made = undropped(adapter(architecture, kind))
    scale = 1.0 if kind == "vera" else 0.7
    states, stacks = clients(made, made.parts)
    made.load(residual(made) | states[0], scale)
    made.model.double()
    with one_pass(made, stacks, SHARES):
        got = losses(made.model, batch(range(K * B)))
        got.sum().backward()
    for k, rows in enumerate(CLIENTS):
        made.load(residual(made) | states[k], scale)
        made.model.double()
        each, grads = gradients(made, made.parts, rows)
        assert close(got[rows.start : rows.stop], each)
        assert set(grads) == set(stacks)
        for name, truth in grads.items():
            assert close(stacks[name].grad[k], truth.sum(0)), name
            assert truth.any(), name


@pytest.mark.parametrize(
    ("kind", "parts"),
    [("lora", {"A"}), ("lora", {"B"}), ("lora-sb", {"R"}), ("lora-sb", {"A", "B"}), ("vera", {"d"}),
     ("lora", {"head"})],
)  # fmt: skip
def test_other_parts_are_shared_and_get_the_sum(kind, parts, in_float64):
    """Parts that are not stacked stay as loaded for every copy, and their gradient is that of all
    rows; so do half of the head's parameters."""
    made = undropped(adapter("roberta", kind))
    states, stacks = clients(made, parts)
    stacks = {k: t for k, t in stacks.items() if "out_proj" not in k}
    made.load(states[0])
    made.model.double()
    made.trainable(made.parts)
    with one_pass(made, stacks, SHARES):
        got = losses(made.model, batch(range(K * B)))
        got.sum().backward()
    live = {k: p for k, p in made.live().items() if p.requires_grad}
    assert all((p.grad is None) == (k in stacks) for k, p in live.items())
    shared = {k: p.grad.clone() for k, p in live.items() if k not in stacks}
    total = {k: torch.zeros_like(g) for k, g in shared.items()}
    for k, rows in enumerate(CLIENTS):
        made.load(states[0] | {n: t[k].detach().float() for n, t in stacks.items()})
        each, grads = gradients(made, made.parts, rows)
        assert close(got[rows.start : rows.stop], each)
        for name in total:
            total[name] += grads[name].sum(0)
    assert total and all(close(shared[name], total[name]) for name in total)


def test_a_layer_called_twice():
    """ALBERT's layers share their weights: both calls are stacked."""
    small = {**SIZES, "embedding_size": 8, "num_hidden_groups": 1}
    with forked(0, "albert"):
        network = AlbertForSequenceClassification(AlbertConfig(**small)).eval()
    made = undropped(Adapter(network, config.Adapter(kind="lora", rank=2), seed=7))
    states, stacks = clients(made, made.parts)
    stacks = {k: t.detach().float().requires_grad_() for k, t in stacks.items()}
    with one_pass(made, stacks, SHARES):
        got = losses(made.model, batch(range(K * B)))
        got.sum().backward()
    calls = []
    shared = network.get_submodule(next(k for k in made.shapes if k.endswith("query")))
    shared.register_forward_hook(lambda *_: calls.append(1))
    for k, rows in enumerate(CLIENTS):
        made.load(states[k])
        each, grads = gradients(made, made.parts, rows)
        assert close(got[rows.start : rows.stop], each, 1e-5)
        assert all(close(stacks[n].grad[k], g.sum(0), 1e-4) for n, g in grads.items())
    assert len(calls) == 2 * K * B


@pytest.mark.parametrize("kind", KINDS)
def test_a_base_in_bf16_keeps_pefts_casts(kind):
    """The adapter computes in fp32 and a layer's output is in the base's format: copies of what is
    loaded give what the model gives."""
    made = undropped(adapter("llama", kind))
    made.load(drawn(made))
    for module in made.shapes:
        made.base(module).to(torch.bfloat16)
    for name in ("embed_tokens", "norm", "layers"):
        for inner in made.model.get_base_model().get_submodule(f"model.{name}").modules():
            for p in inner.parameters(recurse=False):
                if not any(p is t for t in made.live().values()):
                    p.data = p.data.to(torch.bfloat16)
    seen = []
    layer = made.model.get_base_model().get_submodule(next(iter(made.shapes)))
    layer.register_forward_hook(lambda _, x, y: seen.append((x[0].dtype, y.dtype)))
    copies = {k: t.detach().expand(K, *t.shape) for k, t in select(made.live(), made.parts).items()}
    truth = losses(made.model, batch(range(K)))
    with one_pass(made, copies, [1] * K):
        got = losses(made.model, batch(range(K)))
    assert seen == [(torch.bfloat16, torch.bfloat16)] * 2
    assert close(got, truth, 1e-2)


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_behind(fails):
    """No attribute, hook or flag, also where something fails inside, and the model computes what
    it did."""
    made = undropped(adapter("roberta", "lora"))
    made.trainable({"B"})
    _, stacks = clients(made, {"A", "B", "head"})
    stacks = {k: t.detach().float() for k, t in stacks.items()}
    before, truth = traces(made), losses(made.model, row(0)).detach()
    try:
        with one_pass(made, stacks, SHARES):
            assert traces(made) != before
            losses(made.model, batch(range(5 if fails else 6)))
    except UserError:
        assert fails
    assert traces(made) == before
    assert torch.equal(losses(made.model, row(0)), truth)


def test_rows_have_dropouts_of_their_own():
    """In the layers and in the head: equal rows under equal copies come out different, and the
    same where dropout is off."""
    made = undropped(adapter("roberta", "lora", dropout=0.5))
    made.load(drawn(made))
    copies = {k: t.detach().expand(4, *t.shape) for k, t in select(made.live(), {"A"}).items()}
    heads = {k: t.detach().expand(4, *t.shape) for k, t in select(made.live(), {"head"}).items()}
    same = {k: t.expand(4, -1) for k, t in row(0).items()}
    for tensors, dropped in ((copies, "lora_dropout"), (heads, "classifier")):
        modules = [m for k, m in made.model.named_modules() if dropped in k]
        for p, different in ((0.0, 1), (0.5, 4)):
            for module in modules:
                if isinstance(module, nn.Dropout):
                    module.p = p
            with forked(0, "dropout"), one_pass(made, tensors, [1] * 4):
                assert len(losses(made.model, same).unique()) == different
        undropped(made)


def test_what_cannot_be_stacked_is_refused():
    """Each mistake by name: an unknown part, VeRA's shared projections, a wrong shape, unequal
    numbers of copies, a batch of other rows than they take."""
    made = adapter("bert", "lora")
    name = next(iter(made.shapes))
    A, B = (made.live()[f"{name}.{x}"].detach() for x in "AB")
    vera = adapter("bert", "vera")
    wrong = [
        (made, {f"{name}.R": A.expand(2, -1, -1)}, r"query\.R cannot be stacked"),
        (vera, {"vera.U": vera.live()["vera.U"].expand(2, -1, -1)}, r"vera\.U cannot be stacked"),
        (made, {f"{name}.A": A}, r"\(K, 4, 16\)"),
        (made, {f"{name}.A": A.expand(2, -1, -1), f"{name}.B": B.expand(3, -1, -1)}, "3 copies"),
    ]
    for which, tensors, message in wrong:
        before = traces(which)
        with pytest.raises(UserError, match=message), one_pass(which, tensors, [3, 3]):
            pass
        assert traces(which) == before
    with (
        pytest.raises(UserError, match=r"5 rows .* 3 stacked copies that take 6"),
        one_pass(made, {f"{name}.A": A.expand(3, -1, -1)}, [1, 2, 3]),
    ):
        losses(made.model, batch(range(5)))


@pytest.mark.parametrize("which", ["layer", "head"])
def test_a_layer_that_sees_other_rows_is_refused(which):
    """Twelve tokens of two rows would divide by two copies; that they are no rows is said, with
    the layer's name."""
    made = undropped(adapter("bert", "lora"))
    base = made.model.get_base_model()
    name = "bert.encoder.layer.0.intermediate.dense" if which == "layer" else "classifier"
    if which == "layer":
        outer = base.get_submodule(name.removesuffix(".dense"))
        outer.forward = lambda x: outer.intermediate_act_fn(
            outer.dense(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        )
    else:
        base.get_submodule(name).register_forward_pre_hook(lambda _, x: (x[0].repeat(2, 1),))
    stacks = {k: t.detach().expand(2, *t.shape) for k, t in made.live().items()}
    with pytest.raises(UserError, match=f"{name} is given"), one_pass(made, stacks, [1, 1]):
        made.model(**batch(range(2)))
