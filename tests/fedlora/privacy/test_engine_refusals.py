import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fedlora.errors import UserError
from fedlora.privacy.engines import ENGINES, per_example, unsupported
from tests.fedlora.adapters.padded import (
    batch,
    close,
    gradients,
    in_float64,
    losses,
    traces,
    undropped,
)
from tests.fedlora.adapters.tiny import ARCHITECTURES, adapter, drawn

__all__ = ["in_float64"]  # a fixture
ROWS = range(4)


@pytest.mark.parametrize("engine", ENGINES)
def test_losses_that_are_not_one_a_row_are_refused(engine):
    """A mean over the batch would mix what DP-SGD has to keep apart."""
    made = undropped(adapter("bert", "lora"))
    with per_example(engine, made, made.parts) as step:
        for wrong in (
            lambda: losses(made.model, batch(ROWS)).mean(),
            lambda: losses(made.model, batch(ROWS))[:, None],
        ):
            with pytest.raises(UserError, match="one a row"):
                step(wrong, len(ROWS))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_layer_that_sees_tokens_for_rows_is_refused(engine):
    """Where a model flattens rows and tokens into one, a token's gradient is not passed off as a
    row's."""
    made = undropped(adapter("bert", "lora"))
    outer = made.model.get_base_model().get_submodule("bert.encoder.layer.0.intermediate")
    outer.forward = lambda x: outer.intermediate_act_fn(
        outer.dense(x.flatten(0, 1)).unflatten(0, x.shape[:2])
    )
    with (
        per_example(engine, made, made.parts) as step,
        pytest.raises(UserError, match="rows"),
    ):
        step(lambda: losses(made.model, batch(ROWS)), len(ROWS))


def test_weights_used_behind_a_layers_back(in_float64):
    """Opacus sees calls of layers only: a head that reaches for a layer's weight is refused by
    `hooks`, not passed by with zeros, and `stacked` is right there."""
    made = undropped(adapter("roberta", "lora"))
    made.load(drawn(made))
    made.model.double()
    head = made.model.get_base_model().classifier.modules_to_save["default"]
    head.forward = lambda x: head.out_proj(F.linear(x[:, 0], head.dense.weight, head.dense.bias))
    _, truth = gradients(made, made.parts, ROWS)
    with per_example("stacked", made, made.parts) as step:
        step(lambda: losses(made.model, batch(ROWS)), len(ROWS))
        assert all(close(made.live()[k].grad_sample, grad) for k, grad in truth.items())
    with (
        per_example("hooks", made, made.parts) as step,
        pytest.raises(UserError, match=r"without calling it.*privacy\.engine = stacked"),
    ):
        step(lambda: losses(made.model, batch(ROWS)), len(ROWS))


class OwnLinear(nn.Linear):
    """A layer that is not Opacus's."""


def test_unsupported_says_why():
    """What Opacus has no rule for, by name; nothing for what it has."""
    for architecture in ARCHITECTURES:
        for kind in ("lora", "lora-sb"):
            assert unsupported(adapter(architecture, kind)) == ""
    vera = adapter("bert", "vera")
    assert "VeRA" in unsupported(vera)

    buffered = adapter("bert", "lora")
    head = buffered.model.get_base_model().classifier.modules_to_save["default"]
    head.register_buffer("mean", torch.zeros(1))
    assert "buffers, as classifier" in unsupported(buffered)

    own = adapter("roberta", "lora")
    own.model.get_base_model().classifier.modules_to_save["default"].dense.__class__ = OwnLinear
    assert "dense, a OwnLinear" in unsupported(own)
    own.trainable({"A"})
    assert "dense, a OwnLinear" in unsupported(own), "whatever is trained at the moment"

    frozen = adapter("roberta", "lora", head="frozen")
    frozen.model.get_base_model().classifier.modules_to_save["default"].dense.__class__ = OwnLinear
    assert unsupported(frozen) == ""

    before = traces(vera)
    with (
        pytest.raises(UserError, match=r"VeRA.*privacy\.engine = stacked"),
        per_example("hooks", vera, vera.parts),
    ):
        pass
    assert traces(vera) == before
