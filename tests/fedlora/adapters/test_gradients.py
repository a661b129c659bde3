import pytest
import torch
import torch.nn.functional as F
from transformers import AlbertConfig, AlbertForSequenceClassification

from fedlora import config
from fedlora.adapters import Adapter
from fedlora.adapters.gradients import gradients
from fedlora.streams import forked
from tests.fedlora.adapters.tiny import ARCHITECTURES, KINDS, SIZES, adapter, drawn, residual, rows


def losses(model, batch):
    """Cross-entropy a row, (rows,)."""
    return F.cross_entropy(model(input_ids=batch).logits, batch[:, 0] % 3, reduction="none")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_autograds_gradient_of_the_weights(architecture, kind, global_rng_untouched):
    """Summed over rows and batches, at the model with its adapter and residual, for layers from
    first to last; nothing in the model is changed, dropout is off."""
    made = adapter(architecture, kind, dropout=0.3)
    made.load(drawn(made) | residual(made))
    made.trainable(made.parts)
    made.model.train()
    flags = {n: p.requires_grad for n, p in made.model.named_parameters()}
    got = gradients(made, list(made.shapes), rows().split(3), losses)
    assert made.model.training
    assert {n: p.requires_grad for n, p in made.model.named_parameters()} == flags
    assert all(p.grad is None for p in made.model.parameters())

    made.model.eval()
    weights = {k: made.base(k).weight.requires_grad_() for k in made.shapes}
    losses(made.model, rows()).sum().backward()
    for module, weight in weights.items():
        truth = weight.grad.T if architecture == "gpt2" else weight.grad
        assert got[module].shape == made.shapes[module] and got[module].any()
        assert torch.allclose(got[module], truth, rtol=1e-4, atol=1e-6)


def test_a_group_of_layers_at_a_time():
    """A group gives what all together give, with everything in the model frozen."""
    made = adapter("bert", "lora-sb")
    made.trainable(())
    modules = list(made.shapes)
    together = gradients(made, modules, [rows()], losses)
    for start in range(0, len(modules), 5):
        group = gradients(made, modules[start : start + 5], [rows()], losses)
        assert list(group) == modules[start : start + 5]
        assert all(torch.allclose(g, together[k], atol=1e-6) for k, g in group.items())


def test_a_layer_called_twice_has_the_sum():
    """ALBERT's layers share their weights; and one forward pass serves every layer."""
    small = {**SIZES, "embedding_size": 8, "num_hidden_groups": 1}
    with forked(0, "albert"):
        network = AlbertForSequenceClassification(AlbertConfig(**small)).eval()
    made = Adapter(network, config.Adapter(kind="lora", rank=2), seed=7)
    made.model.eval()
    passes = []
    note = made.model.register_forward_hook(lambda *_: passes.append(1))
    got = gradients(made, list(made.shapes), [rows()], losses)
    assert len(passes) == 1
    note.remove()
    weights = {k: made.base(k).weight.requires_grad_() for k in made.shapes}
    losses(made.model, rows()).sum().backward()
    for module, weight in weights.items():
        assert torch.allclose(got[module], weight.grad, rtol=1e-4, atol=1e-6) and got[module].any()


def test_a_layer_the_loss_does_not_reach_has_none():
    """Zero, not an error."""
    made = adapter("bert", "lora")

    def before_the_pooler(model, batch):
        hidden = model(input_ids=batch, output_hidden_states=True).hidden_states
        return hidden[-1].square().sum((1, 2))

    modules = ["bert.encoder.layer.1.output.dense", "bert.pooler.dense"]
    got = gradients(made, modules, [rows()], before_the_pooler)
    assert got[modules[0]].any() and not got[modules[1]].any()
