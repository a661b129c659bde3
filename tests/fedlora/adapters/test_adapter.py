import copy

import pytest
import torch

from fedlora import config
from fedlora.adapters import PARTS, Adapter
from fedlora.errors import UserError
from fedlora.tensors import RESIDUAL, part_of
from tests.fedlora.adapters.tiny import (
    ARCHITECTURES,
    KINDS,
    adapter,
    dense,
    dense_model,
    drawn,
    logits,
    model,
    residual,
    rows,
)

EVERY = set("ABRdbUV") | {"head"}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_model_computes_the_dense_equation(architecture, kind, global_rng_untouched):
    """W0 + s B A (s B R A, diag(b) U diag(d) V) + P Q + D on every linear layer, as a plain model
    with those weights written into it computes it; `delta` and `weight` say the same."""
    made = adapter(architecture, kind)
    assert torch.allclose(logits(made.model), logits(model(architecture)), atol=1e-6)
    state = drawn(made) | residual(made)
    made.load(state)
    complete = made.read(EVERY) | state
    scale = {"lora": 2.0, "vera": 1.0, "lora-sb": 1.0}[kind]
    for module in made.shapes:
        truth = dense(made, complete, module, scale)
        assert torch.allclose(made.delta(module).double(), truth, atol=1e-6)
        stored = model(architecture).get_submodule(module).weight
        assert torch.equal(made.weight(module), stored.T if architecture == "gpt2" else stored)
        assert made.weight(module).shape == made.shapes[module] == truth.shape
    expected = logits(dense_model(made, architecture, complete, scale))
    assert not torch.allclose(expected, logits(model(architecture)), atol=1e-2)
    assert torch.allclose(logits(made.model), expected, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_names_are_the_contracts(kind):
    """`<module path>.<part>` with the model's own paths, VeRA's projections shared by all, and the
    head under its full name, also when it is frozen."""
    made = adapter("roberta", kind, target_modules=None, head="frozen")
    modules = [
        f"roberta.encoder.layer.{i}.attention.self.{x}" for i in (0, 1) for x in ("query", "value")
    ]
    parts = {"lora": "AB", "vera": "db", "lora-sb": "ABR"}[kind]
    heads = {f"head.classifier.{x}.{y}" for x in ("dense", "out_proj") for y in ("weight", "bias")}
    shared = {"vera.U", "vera.V"} if kind == "vera" else set()
    assert list(made.shapes) == modules
    assert set(made.initial()) == {f"{m}.{p}" for m in modules for p in parts} | heads | shared
    assert made.parts == PARTS[kind]
    assert adapter("roberta", kind).parts == PARTS[kind] | {"head"}


@pytest.mark.parametrize("kind", KINDS)
def test_pefts_own_tensors_are_the_ones_in_use(kind):
    """What `read` gives is what PEFT would save, and what `load` writes PEFT sees."""
    from peft import get_peft_model_state_dict

    made = adapter("bert", kind)
    made.load(drawn(made))
    saved = get_peft_model_state_dict(made.model, save_embedding_layers=False)
    read = made.read(EVERY)
    assert {tuple(t.shape) for t in saved.values()} == {tuple(t.shape) for t in read.values()}
    for tensor in read.values():
        assert any(t.shape == tensor.shape and torch.equal(t, tensor) for t in saved.values())


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_alone_decides_how_it_starts(kind):
    """Two adapters of one seed are equal whatever the global generator, one of another seed and
    layers of the same shape differ, and `initial` stays the start after a load."""
    first = adapter("bert", kind)
    with torch.random.fork_rng():
        torch.manual_seed(99)
        second = adapter("bert", kind)
    first.load(drawn(first))
    assert first.initial().keys() == second.initial().keys()
    assert all(torch.equal(t, second.initial()[k]) for k, t in first.initial().items())
    fields = config.Adapter(kind=kind, rank=4, target_modules="all-linear")
    other = Adapter(model("bert"), fields, seed=8).initial()
    for name, tensor in first.initial().items():
        if part_of(name) in {"lora": "A", "vera": "UV", "lora-sb": "AB"}[kind]:
            assert not torch.equal(other[name], tensor)
    if kind == "lora":
        start = first.initial()
        layer = "bert.encoder.layer.{}.attention.self.query.A"
        assert not torch.equal(start[layer.format(0)], start[layer.format(1)])


def test_lora_sb_starts_as_the_model_with_orthonormal_factors():
    """B^T B = A A^T = I and R = 0, yet R has a gradient."""
    made = adapter("bert", "lora-sb")
    start = made.initial()
    for module in made.shapes:
        A, B = start[f"{module}.A"], start[f"{module}.B"]
        assert torch.allclose(B.T @ B, torch.eye(4), atol=1e-6)
        assert torch.allclose(A @ A.T, torch.eye(4), atol=1e-6)
        assert not start[f"{module}.R"].any()
    parameters = made.trainable({"R"})
    made.model(input_ids=rows()).logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in parameters)


@pytest.mark.parametrize("kind", KINDS)
def test_state_round_trip(kind):
    """Everything read from one adapter and loaded into another gives the same bits out, and what
    is read is a copy."""
    one, two = adapter("gpt2", kind), adapter("gpt2", kind)
    one.load(drawn(one))
    state = one.read(EVERY)
    two.load(state)
    assert torch.equal(logits(one.model), logits(two.model))
    for tensor in state.values():
        tensor.zero_()
    assert torch.equal(logits(one.model), logits(two.model))
    assert any(t.any() for t in one.read(EVERY).values())


def test_rslora_divides_by_the_root_of_the_rank():
    """s = alpha / sqrt(r), in the model as in `scaling`."""
    made = adapter("llama", "lora", alpha=8.0, rslora=True)
    state = drawn(made)
    made.load(state)
    assert made.scaling.at(4) == 4.0
    expected = logits(dense_model(made, "llama", state, 4.0))
    assert torch.allclose(logits(made.model), expected, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", ["A", "B", "R", "d", "b", "head"])
def test_only_the_parts_asked_for_get_gradients(kind, part):
    """Everything else is frozen, the residual included, which lets the gradient through to the
    layers below; loads and train() do not thaw anything."""
    made = adapter("bert", kind)
    chosen = made.trainable({part})
    made.load(drawn(made) | residual(made))
    made.model.train()
    expected = {k for k in made.initial() if part_of(k) == part} if part in made.parts else set()
    assert len(chosen) == len(expected)
    if chosen:
        made.model(input_ids=rows()).logits.square().sum().backward()
    with_grad = {id(p) for p in made.model.parameters() if p.grad is not None}
    assert with_grad == {id(p) for p in chosen}
    assert all(p.grad.any() for p in chosen)
    assert not any(b.requires_grad for b in made.model.buffers())


def test_a_frozen_head_is_never_trained():
    """head = "frozen" takes it out of what can be trained."""
    made = adapter("bert", "lora", head="frozen")
    assert made.trainable({"head"}) == []
    assert not any(p.requires_grad for p in made.model.parameters())


def test_lora_sbs_factors_stay_frozen_under_peft():
    """PEFT's own switching of adapters thaws what is frozen by hand, but not A and B."""
    made = adapter("bert", "lora-sb")
    made.model.set_adapter("default")
    trained = {n.split(".")[-3] for n, p in made.model.named_parameters() if p.requires_grad}
    assert "lora_R" in trained and not trained & {"lora_A", "lora_B"}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_bf16_base_holds_an_fp32_adapter(architecture, kind):
    """Over a bf16 base the adapter, the head and the residual stay fp32, train, and are computed
    to the base's precision; a residual far below the weights' resolution is not lost."""
    fields = config.Adapter(kind=kind, rank=4, target_modules="all-linear")
    made = Adapter(model(architecture).bfloat16(), fields, seed=7)
    made.model.eval()
    state = drawn(made) | residual(made)
    made.load(state)
    assert all(
        torch.equal(made.read(EVERY)[k], t) for k, t in state.items() if part_of(k) not in RESIDUAL
    )
    exact = adapter(architecture, kind)
    exact.load(state | {k: t for k, t in made.initial().items() if part_of(k) in "UV"})
    assert torch.allclose(logits(made.model).float(), logits(exact.model), atol=0.05)
    loss = made.model(input_ids=rows()).logits.float().square().sum()
    loss.backward()
    assert all(p.grad is not None for p in made.trainable(made.parts))


def test_a_small_residual_survives_a_bf16_base():
    """P Q a thousandth of W0 would drown in bf16 weights (8 bits); beside them it is exact to the
    output's own rounding."""
    from fedlora.adapters.residual import attach

    layer = torch.nn.Linear(64, 32, bias=False).bfloat16()
    torch.nn.init.zeros_(layer.weight)
    side = attach(layer)
    side.P, side.Q = torch.full((32, 1), 1e-3), torch.linspace(-1, 1, 64)[None]
    x = torch.linspace(0, 1, 64).bfloat16()[None].requires_grad_()
    y = layer(x)
    truth = x.double() @ (side.P.double() @ side.Q.double()).T
    assert y.dtype == torch.bfloat16
    assert torch.allclose(y.double(), truth, rtol=2**-8)
    y.sum().backward()
    assert torch.allclose(x.grad.float(), (side.P @ side.Q).sum(0)[None], rtol=2**-7)


def test_vera_has_no_scale():
    """A scale for VeRA is refused, never dropped; the one that Scaling gives is 1."""
    for fields in ({"alpha": 4.0}, {"rslora": True}):
        with pytest.raises(UserError, match="VeRA has no scale"):
            adapter("bert", "vera", **fields)
    made = adapter("bert", "vera")
    assert made.scaling.at(4) == 1.0
    made.load({}, scale=1.0)
    with pytest.raises(UserError, match="VeRA has no scale"):
        made.load({}, scale=2.0)


def test_dropout_is_in_front_of_the_adapter_and_only_in_training():
    """adapter.dropout acts under train() for every kind, and never under eval()."""
    for kind in KINDS:
        made = adapter("llama", kind, dropout=0.5)
        made.load(drawn(made))
        assert torch.equal(logits(made.model), logits(made.model))
        made.model.train()
        with torch.random.fork_rng():
            assert not torch.equal(logits(made.model), logits(made.model))


def test_a_copy_of_the_model_is_left_as_it_was():
    """The frozen base is not changed by loads, training or a residual."""
    made = adapter("gpt2", "lora")
    before = {m: copy.deepcopy(made.weight(m)) for m in made.shapes}
    made.load(drawn(made) | residual(made))
    optimizer = torch.optim.SGD(made.trainable(made.parts), lr=0.1)
    made.model(input_ids=rows()).logits.square().sum().backward()
    optimizer.step()
    assert all(torch.equal(made.weight(m), w) for m, w in before.items())
