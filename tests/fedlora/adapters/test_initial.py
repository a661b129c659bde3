"""PEFT's initialisations against PEFT's own models, which change W0 where this one keeps it."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from fedlora import config
from fedlora.adapters import Adapter
from fedlora.adapters.initial import initial
from fedlora.streams import forked
from tests.fedlora.adapters.tiny import adapter, logits, model, rows

INITS = ("gaussian", "orthogonal", "pissa", "pissa_niter_4", "olora")


def begun(architecture, init, **fields):
    """An adapter that holds what the server would send of it, and that."""
    made = adapter(architecture, "lora", init=init, **fields)
    tensors = initial(made, config.Adapter(kind="lora", rank=4, init=init, **fields), seed=7)
    made.load(tensors)
    return made, tensors


def peft(architecture, init, targets, **fields):
    """PEFT's own model: rank 4 and s = 2."""
    settings = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=targets,
        init_lora_weights=init,
        fan_in_fan_out=architecture == "gpt2",
        modules_to_save=["score" if architecture == "gpt2" else "classifier"],
        **fields,
    )
    return get_peft_model(model(architecture), settings).eval()


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_the_start_is_the_pretrained_model(architecture, init):
    """W = W0 in every layer and in the logits, and W0 itself has not moved, Conv1D included; only
    pissa and olora have a residual, and B is zero for gaussian alone."""
    made, tensors = begun(architecture, init)
    plain = model(architecture)
    assert torch.allclose(logits(made.model), logits(plain), atol=1e-5)
    for module in made.shapes:
        weight = plain.get_submodule(module).weight.detach()
        assert torch.equal(made.weight(module), weight.T if architecture == "gpt2" else weight)
        assert made.delta(module).abs().max() < 1e-6
        assert (f"{module}.P" in tensors) == (init not in ("gaussian", "orthogonal"))
        assert tensors[f"{module}.A"].any()
        assert tensors[f"{module}.B"].any() == (init != "gaussian")


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("init", INITS)
def test_factors_are_pefts_for_the_same_draws(init, rslora):
    """A and B of a layer are those that PEFT makes of it where the generator stands the same."""
    made, tensors = begun("bert", init, rslora=rslora)
    for module in [*made.shapes][:2]:
        with forked(7, "init", module):
            other = peft("bert", init, [module], use_rslora=rslora)
        layer = other.get_base_model().get_submodule(module)
        assert torch.equal(tensors[f"{module}.A"], layer.lora_A["default"].weight)
        assert torch.equal(tensors[f"{module}.B"], layer.lora_B["default"].weight)


@pytest.mark.parametrize(
    ("architecture", "init"), [("bert", "pissa"), ("bert", "olora"), ("gpt2", "pissa")]
)
def test_gradients_are_those_of_pefts_model(architecture, init):
    """The loss's gradient by A and B, as in PEFT's model with its smaller W0. (PEFT's olora does
    not know Conv1D.)"""
    made, _ = begun(architecture, init)
    other = peft(architecture, init, [*made.shapes])
    made.trainable({"A", "B"})
    for network in (made.model, other):
        network(input_ids=rows(), labels=torch.tensor([0, 1, 2, 1])).loss.backward()
    live = made.live()
    ours, theirs = [], []
    for module in made.shapes:
        layer = other.get_base_model().get_submodule(module)
        ours += [live[f"{module}.{part}"].grad for part in "AB"]
        theirs += [factors["default"].weight.grad for factors in (layer.lora_A, layer.lora_B)]
    largest = max(t.abs().max() for t in theirs)  # a query's are far smaller
    for own, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-5, atol=float(1e-5 * largest))


def test_a_bf16_base_is_decomposed_in_fp32():
    """Factors of the bf16 weights, not factors in bf16: they hold leading directions to fp32."""
    made = Adapter(model("bert").bfloat16(), config.Adapter(kind="lora", rank=4), seed=7)
    tensors = initial(made, config.Adapter(kind="lora", rank=4, init="pissa"), 7)
    for module in made.shapes:
        U, S, V = torch.linalg.svd(made.weight(module).double())
        best = (U[:, :4] * S[:4]) @ V[:4]
        B, A = tensors[f"{module}.B"].double(), tensors[f"{module}.A"].double()
        assert (2 * B @ A - best).abs().max() < 1e-6


def test_what_is_taken_out_is_what_crosses_the_wire():
    """In a bf16 round A and B arrive rounded, and so they were when the residual was made."""
    made = adapter("bert", "lora")
    tensors = initial(made, config.Adapter(kind="lora", rank=4, init="olora"), 7, torch.bfloat16)
    crossed = {k: t.bfloat16().float() if k[-1] in "AB" else t for k, t in tensors.items()}
    made.load(crossed)
    assert max(made.delta(module).abs().max() for module in made.shapes) < 1e-6


def test_the_adapter_itself_decomposes_nothing(monkeypatch):
    """A client gets its start from the server: making its adapter costs no SVD, and W0 stays."""
    monkeypatch.setattr(torch.linalg, "svd", None)
    monkeypatch.setattr(torch.linalg, "qr", None)
    for init in ("pissa", "olora"):
        made = adapter("bert", "lora", init=init)
        plain = adapter("bert", "lora")
        assert all(torch.equal(t, plain.initial()[k]) for k, t in made.initial().items())


def test_drawing_leaves_the_global_generator_alone(global_rng_untouched):
    """Seeded streams alone: twice the same, and others for another seed."""
    made = adapter("bert", "lora")
    chosen = config.Adapter(kind="lora", rank=4, init="gaussian")
    one, same, other = (initial(made, chosen, seed) for seed in (1, 1, 2))
    name = f"{next(iter(made.shapes))}.A"
    assert torch.equal(one[name], same[name]) and not torch.equal(one[name], other[name])
