import importlib.util
import sys

import pytest
import torch
from transformers import AlbertConfig, AlbertForSequenceClassification

from fedlora import config
from fedlora.adapters import Adapter
from fedlora.privacy import engines
from fedlora.privacy.engines import ENGINES, per_example
from fedlora.streams import forked
from tests.fedlora.adapters.padded import (
    LENGTHS,
    batch,
    close,
    gradients,
    in_float64,
    losses,
    row,
    traces,
    undropped,
)
from tests.fedlora.adapters.tiny import ARCHITECTURES, SIZES, adapter, drawn, residual

__all__ = ["in_float64"]  # a fixture
ROWS = range(4)
EVERY = [
    *[("stacked", kind) for kind in ("lora", "lora-sb", "vera")],
    *[("hooks", kind) for kind in ("lora", "lora-sb")],
]


def samples(made):
    """p.grad_sample by name, of what is trained."""
    return {k: p.grad_sample for k, p in made.live().items() if p.requires_grad}


def agree(engine, made, parts, relative=1e-10, rows=ROWS):
    """The engine's losses and gradients are those of rows taken one by one."""
    with per_example(engine, made, parts) as step:
        each = step(lambda: losses(made.model, batch(rows)), len(rows))
        found = samples(made)
        assert all(p.grad is None for p in made.model.parameters())
    truth, grads = gradients(made, parts, rows)
    assert close(each, truth, relative) and not each.requires_grad
    assert set(found) == set(grads)
    for name, grad in grads.items():
        assert close(found[name], grad, relative), name
        assert grad.any(), name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("engine", "kind"), EVERY)
def test_each_rows_own_gradient(engine, kind, architecture, in_float64, global_rng_untouched):
    """Of every trained parameter, head included, as one row after another gives it: the others in
    the batch and their padding change nothing. A residual is loaded."""
    made = undropped(adapter(architecture, kind))
    made.load(drawn(made) | residual(made))
    made.model.double()
    agree(engine, made, made.parts)


@pytest.mark.parametrize(("engine", "kind"), EVERY)
def test_a_frozen_head_and_part_of_the_adapter(engine, kind, in_float64):
    """Only what is trained has gradients, in whatever part of the adapter."""
    made = undropped(adapter("roberta", kind, head="frozen"))
    made.load(drawn(made))
    made.model.double()
    agree(engine, made, made.parts)
    if kind == "lora":
        agree(engine, made, {"B"})
        agree(engine, made, {"A"})


@pytest.mark.parametrize("engine", ENGINES)
def test_a_client_of_smaller_rank(engine, in_float64):
    """A and B cut to rank two, with a scale of their own, as FSLoRA's clients hold them."""
    made = undropped(adapter("bert", "lora"))
    state = drawn(made)
    cut = {k: t[:2] for k, t in state.items() if k.endswith(".A")}
    cut |= {k: t[:, :2] for k, t in state.items() if k.endswith(".B")}
    made.load(state | cut, scale=3.3)
    made.model.double()
    agree(engine, made, made.parts)


@pytest.mark.parametrize("engine", ENGINES)
def test_fp32(engine):
    """As it is used: to rounding."""
    made = undropped(adapter("llama", "lora"))
    made.load(drawn(made))
    agree(engine, made, made.parts, 1e-5)


@pytest.mark.parametrize("engine", ENGINES)
def test_batches_of_different_sizes_in_one_context(engine, in_float64):
    """One row, and more or fewer than before: each step is by itself."""
    made = undropped(adapter("bert", "lora"))
    made.load(drawn(made))
    made.model.double()
    _, truth = gradients(made, made.parts, range(len(LENGTHS)))
    with per_example(engine, made, made.parts) as step:
        for rows in (range(2, 6), range(1), range(6)):
            step(lambda rows=rows: losses(made.model, batch(rows)), len(rows))
            for name, grad in samples(made).items():
                assert close(grad, truth[name][rows.start : rows.stop]), name


@pytest.mark.parametrize("engine", ENGINES)
def test_zeros_where_the_loss_does_not_reach(engine, in_float64):
    """The layers after the one that a loss is made of have zeros (rows, *shape), and the next
    step knows nothing of it."""
    made = undropped(adapter("bert", "lora"))
    made.load(drawn(made))
    made.model.double()

    def of_the_body():
        output = made.model(**batch(ROWS), output_hidden_states=True)
        return output.hidden_states[1][:, 0].square().sum(1)

    unreached = ("bert.encoder.layer.1", "bert.pooler", "head.classifier")
    with per_example(engine, made, made.parts) as step:
        step(of_the_body, len(ROWS))
        for name, p in made.live().items():
            assert p.grad_sample.shape == (len(ROWS), *p.shape)
            assert p.grad_sample.any() != name.startswith(unreached), name
        step(lambda: losses(made.model, batch(ROWS)), len(ROWS))
        found = samples(made)
    _, truth = gradients(made, made.parts, ROWS)
    assert all(close(found[k], grad) for k, grad in truth.items())


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_layer_called_twice(engine, depth, in_float64):
    """ALBERT's layers share their weights: the gradients of both calls are added, or there is that
    of the one call which the loss comes from."""
    small = {**SIZES, "embedding_size": 8, "num_hidden_groups": 1}
    with forked(0, "albert"):
        network = AlbertForSequenceClassification(AlbertConfig(**small))
    made = undropped(Adapter(network, config.Adapter(kind="lora", rank=2, head="frozen"), seed=7))
    made.load(drawn(made))
    made.model.double()

    def of_a_call(inputs):
        hidden = made.model(**inputs, output_hidden_states=True).hidden_states
        return hidden[depth][:, 0].square().sum(1)

    found = []
    with per_example(engine, made, made.parts) as step:
        for rows in (ROWS, range(2)):  # what the first leaves over is not in the second
            step(lambda rows=rows: of_a_call(batch(rows)), len(rows))
            found.append(samples(made))
    for i in ROWS:
        trained = made.trainable(made.parts)
        truth = torch.autograd.grad(of_a_call(row(i)).sum(), trained, materialize_grads=True)
        for step in found[: 2 if i < 2 else 1]:
            for got, grad in zip(step.values(), truth, strict=True):
                assert (got[i] - grad).abs().max() <= 1e-10 * max(1, grad.abs().max())
    assert all(len(got) == 2 for got in found[1].values())


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_is_left_behind(engine, fails):
    """After a private optimizer's step: no gradient, attribute or hook on the model, and what is
    trained is what `trainable` set. Also after an exception amid a pass."""
    from opacus.optimizers import DPOptimizer

    made = undropped(adapter("roberta", "lora"))
    parameters = made.trainable({"B", "head"})
    before = traces(made)
    optimizer = DPOptimizer(
        torch.optim.SGD(parameters, lr=0.1),
        noise_multiplier=0.0,
        max_grad_norm=1e6,
        expected_batch_size=len(ROWS),
    )

    def broken():
        losses(made.model, batch(ROWS))
        raise ArithmeticError

    try:
        with per_example(engine, made, {"B", "head"}) as step:
            step(lambda: losses(made.model, batch(ROWS)), len(ROWS))
            optimizer.step()
            optimizer.zero_grad()
            assert traces(made) != before
            if fails:
                step(broken, len(ROWS))
    except ArithmeticError:
        assert fails
    assert traces(made) == before


@pytest.mark.parametrize("engine", ENGINES)
def test_a_private_optimizer_without_noise_is_sgd(engine):
    """Opacus's optimizer takes the gradients as they are: no noise and nothing clipped is a step
    on the sum over the expected batch."""
    from opacus.optimizers import DPOptimizer

    steps = []
    for private in (True, False):
        made = undropped(adapter("bert", "lora"))
        made.load(drawn(made))
        parameters = made.trainable(made.parts)
        sgd = torch.optim.SGD(parameters, lr=0.5)
        if private:
            updater = DPOptimizer(
                sgd, noise_multiplier=0.0, max_grad_norm=1e6, expected_batch_size=8
            )
            with per_example(engine, made, made.parts) as step:
                step(lambda made=made: losses(made.model, batch(ROWS)), len(ROWS))
                updater.step()
        else:
            (losses(made.model, batch(ROWS)).sum() / 8).backward()
            sgd.step()
        steps.append(made.read(made.parts))
    start = drawn(made)
    assert all(torch.allclose(t, steps[1][k], rtol=0, atol=1e-6) for k, t in steps[0].items())
    assert any(not torch.allclose(t, start[k], rtol=0, atol=1e-3) for k, t in steps[0].items())


def test_dropout_is_a_rows_own():
    """Equal rows of one batch have different masks, and so different gradients."""
    made = adapter("roberta", "lora", dropout=0.5)
    made.load(drawn(made))
    made.model.train()
    same = {k: t.expand(3, -1) for k, t in row(0).items()}
    with forked(0, "dropout"), per_example("stacked", made, made.parts) as step:
        step(lambda: losses(made.model, same), 3)
        for grad in samples(made).values():
            assert not torch.allclose(grad[0], grad[1]) and not torch.allclose(grad[1], grad[2])


def test_opacus_is_imported_for_hooks_only(monkeypatch):
    """Its import takes seconds, and every process imports this module: with Opacus out of reach
    the module loads and `stacked` works."""
    for name in [*filter(lambda k: k.split(".")[0] == "opacus", sys.modules), "opacus"]:
        monkeypatch.setitem(sys.modules, name, None)
    spec = importlib.util.spec_from_file_location("engines_again", engines.__file__)
    again = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(again)
    made = undropped(adapter("bert", "lora"))
    with again.per_example("stacked", made, made.parts) as step:
        step(lambda: losses(made.model, batch(ROWS)), len(ROWS))
    with pytest.raises(ImportError), again.per_example("hooks", made, made.parts):
        pass
