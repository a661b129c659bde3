"""DoRA against its formula, row by row in float64: alone, in stacks, and as PEFT loads it."""

import json

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

from fedlora import config, export
from fedlora.adapters import Adapter
from fedlora.adapters.stack import Stack
from fedlora.errors import UserError
from fedlora.privacy.engines import per_example, unsupported
from fedlora.streams import forked, stream
from fedlora.tensors import part_of, select
from tests.fedlora.adapters.padded import (
    batch,
    close,
    gradients,
    in_float64,
    losses,
    one_pass,
    undropped,
)
from tests.fedlora.adapters.tiny import adapter, drawn, logits, model, residual, rows

__all__ = ["in_float64"]  # a fixture
ARCHITECTURES = ("bert", "llama", "gpt2")


def dora(architecture="bert", **fields):
    return adapter(architecture, "lora", dora=True, **fields)


def truth(made, tensors, module, scale):
    """W (m, n) in float64, one row after another: M_i (w_i + s b_i A) / |w_i + s b_i A|."""
    A, B, M = (tensors[f"{module}.{part}"].double() for part in "ABM")
    found = []
    for w, b, length in zip(made.weight(module).double(), B, M, strict=True):
        row = w + scale * b @ A
        found.append(length * row / row.square().sum().sqrt())
    return torch.stack(found)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("scale", [None, 0.7])
def test_the_model_is_the_formula(architecture, scale):
    """Logits and delta, Conv1D and layers without bias included."""
    made = dora(architecture)
    tensors = drawn(made)
    made.load(tensors, scale)
    plain = model(architecture)
    with torch.no_grad():
        for module in made.shapes:
            W = truth(made, tensors, module, scale or 2.0)
            delta = W - made.weight(module).double()
            torch.testing.assert_close(made.delta(module).double(), delta, rtol=0, atol=1e-6)
            weight = plain.get_submodule(module).weight
            weight.copy_(W.T if architecture == "gpt2" else W)
        heads = {k[5:]: t for k, t in tensors.items() if part_of(k) == "head"}
        plain.load_state_dict(heads, strict=False)
    assert torch.allclose(logits(made.model), logits(plain), atol=1e-5)
    assert not torch.allclose(logits(plain), logits(model(architecture)), atol=1e-2)


def test_the_start_is_the_pretrained_model():
    """M is the norms of W0's rows, in fp32 under a bf16 base too, where PEFT's is rounded."""
    fresh = dora()
    assert fresh.parts == {"A", "B", "M", "head"}
    assert torch.allclose(logits(fresh.model), logits(model("bert")), atol=1e-6)
    fields = config.Adapter(kind="lora", rank=4, dora=True)
    for made in (fresh, Adapter(model("bert").bfloat16(), fields, seed=7)):
        for module in made.shapes:
            M = made.initial()[f"{module}.M"]
            assert M.dtype == torch.float32 and M.shape == made.shapes[module][:1]
            norms = made.weight(module).double().square().sum(1).sqrt()
            torch.testing.assert_close(M.double(), norms, rtol=1e-6, atol=0)


def test_a_m_of_another_length_is_refused():
    """By its name, before anything is changed."""
    made = dora()
    name = f"{next(iter(made.shapes))}.M"
    with pytest.raises(UserError, match=r"M has the shape \(3,\); this adapter wants \(16,\)"):
        made.load({name: torch.ones(3)})
    with pytest.raises(UserError, match=r"there is no .*M in this lora adapter"):
        adapter("bert", "lora").load({name: torch.ones(16)})


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_each_copy_is_its_clients_own_model(architecture, in_float64):
    """One stacked pass gives the losses and gradients that PEFT's own layers give client by client,
    M's among them."""
    made = undropped(dora(architecture))
    generator = stream(0, "biases")  # which a fresh model has at zero
    for module in made.shapes:
        if (bias := made.base(module).bias) is not None:
            bias.data.normal_(generator=generator)
    states = [drawn(made, f"client {k}") for k in range(3)]
    stacks = {k: torch.stack([s[k] for s in states]).double().requires_grad_() for k in states[0]}
    made.load(states[0], 0.7)
    made.model.double()
    with one_pass(made, stacks, [1, 3, 2]):
        got = losses(made.model, batch(range(6)))
        got.sum().backward()
    for state, own, k in zip(states, (range(1), range(1, 4), range(4, 6)), range(3), strict=True):
        made.load(state, 0.7)
        made.model.double()
        each, grads = gradients(made, made.parts, own)
        assert close(got[own.start : own.stop], each)
        assert set(grads) == set(stacks)
        for name, expected in grads.items():
            assert close(stacks[name].grad[k], expected.sum(0), 1e-8), name
            assert expected.any(), name


def test_clients_of_other_ranks_and_scales_share_passes(in_float64):
    """Rank 2 at s = 3 beside rank 4 at s = 0.5: zeros that fill up change no norm."""
    made = undropped(dora())
    states = [drawn(made, "wide"), drawn(made, "narrow")]
    for name in [*states[1]]:
        if part_of(name) in "AB":
            cut = states[1][name]
            states[1][name] = cut[:2] if part_of(name) == "A" else cut[:, :2]
    scales = [0.5, 3.0]
    stack = Stack(made, states, scales, made.parts)
    stack.tensors = {k: t.detach().double().requires_grad_() for k, t in stack.tensors.items()}
    made.model.double()
    with stack.passes() as through, through([0, 1, 0, 1]):
        got = losses(made.model, batch(range(4)))
    for k, own in enumerate(([0, 2], [1, 3])):
        made.load(states[k], scales[k])
        made.model.double()
        for i in own:
            each, _ = gradients(made, {"M"}, range(i, i + 1))
            assert close(got[i : i + 1].detach(), each, 1e-6)


def test_dropout_reaches_w0_too_as_in_peft():
    """In training PEFT's DoRA sees the whole layer's inputs dropped: with the same masks one copy
    is what PEFT computes."""
    made = dora(dropout=0.4)
    tensors = drawn(made)
    made.load(tensors)
    made.model.train()
    outputs = []
    with torch.no_grad():
        with forked(0, "masks"):
            outputs.append(made.model(input_ids=rows()).logits)
        copies = {k: t[None] for k, t in tensors.items()}
        with one_pass(made, copies, [4]), forked(0, "masks"):
            outputs.append(made.model(input_ids=rows()).logits)
    assert torch.allclose(*outputs, atol=1e-5)
    made.model.eval()
    assert not torch.allclose(outputs[0], logits(made.model), atol=1e-3)


def test_each_rows_gradient_is_its_own(in_float64):
    """What DP-SGD clips, M's included, by the stacked engine; Opacus has no rule for M."""
    made = undropped(dora())
    made.load(drawn(made))
    made.model.double()
    _, expected = gradients(made, {"B", "M"}, range(4))
    with per_example("stacked", made, {"B", "M"}) as engine:
        engine(lambda: losses(made.model, batch(range(4))), 4)
        found = {k: p.grad_sample for k, p in made.live().items() if p.requires_grad}
    assert found.keys() == expected.keys()
    assert all(close(found[k], t, 1e-8) for k, t in expected.items())
    assert "Opacus has no rule" in unsupported(made)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_plain_libraries_compute_what_the_adapter_does(architecture, tmp_path):
    """A plain PEFT DoRA checkpoint, and the merged model."""
    made = dora(architecture)
    made.load(drawn(made), 0.7)
    expected = logits(made.model)
    export.save_peft(made, tmp_path / "adapter", "some/base", "SEQ_CLS")
    said = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert said["use_dora"] and said["peft_type"] == "LORA"
    plain = PeftModel.from_pretrained(model(architecture), tmp_path / "adapter").eval()
    assert torch.allclose(logits(plain), expected, atol=1e-5)
    export.merge(made, tmp_path / "merged")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    assert torch.allclose(logits(loaded), expected, atol=1e-5)


def test_a_residual_beside_dora_fits_into_no_checkpoint(tmp_path):
    """A method of one's own may have one: the merged model holds it, PEFT's files cannot."""
    made = dora()
    made.load(drawn(made) | select(residual(made), {"D"}))
    with pytest.raises(UserError, match=r"a residual beside DoRA .*--merge"):
        export.save_peft(made, tmp_path / "adapter", "some/base", "SEQ_CLS")
    assert not (tmp_path / "adapter").exists()
    export.merge(made, tmp_path / "merged")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    assert torch.allclose(logits(loaded), logits(made.model), atol=1e-5)


def test_a_row_of_zeros_is_refused():
    """As an output layer has that is tied to embeddings with a padding token: M / 0 is no number,
    in plain PEFT neither."""
    base = model("bert")
    with torch.no_grad():
        base.get_submodule("bert.encoder.layer.1.attention.self.query").weight[3] = 0
    with pytest.raises(UserError, match=r"layer\.1\.attention\.self\.query has rows of zeros"):
        Adapter(base, config.Adapter(kind="lora", rank=4, dora=True), seed=7)
