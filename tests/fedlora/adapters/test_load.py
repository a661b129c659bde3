import pytest
import torch

from fedlora.errors import UserError
from fedlora.tensors import part_of
from tests.fedlora.adapters.tiny import (
    KINDS,
    adapter,
    dense,
    dense_model,
    drawn,
    logits,
    residual,
    rows,
)


@pytest.mark.parametrize("kind", KINDS)
def test_a_load_leaves_no_residual_of_the_one_before(kind):
    """The residual is what the last load says: none where it says nothing; other parts that a
    load does not name stay."""
    made = adapter("bert", kind)
    state = drawn(made)
    made.load(state)
    without = logits(made.model)
    given = residual(made)
    made.load(state | given)
    for tensor in given.values():
        tensor.fill_(torch.nan)  # the caller's tensors are not the layer's
    assert logits(made.model).isfinite().all()
    assert not torch.allclose(logits(made.model), without, atol=1e-3)
    made.load({})
    assert torch.equal(logits(made.model), without)


def test_a_slice_of_the_rank_resizes_its_layer_and_the_whole_brings_it_back():
    """FSLoRA: A[I], B[:, I] of rank k, with the same alpha, have the scale alpha / k; ranks may
    differ between layers, and the parameters stay the same objects."""
    made = adapter("bert", "lora", alpha=12.0)
    state = drawn(made)
    parameters = made.trainable({"A", "B"})
    keep = {m: torch.tensor([3, 0, 2][: 1 + i % 3]) for i, m in enumerate(made.shapes)}
    sliced = {k: t for k, t in state.items() if part_of(k) == "head"}
    for module, kept in keep.items():
        sliced[f"{module}.A"] = state[f"{module}.A"][kept]
        sliced[f"{module}.B"] = state[f"{module}.B"][:, kept]
    made.load(sliced)
    for module, kept in keep.items():
        truth = dense(made, sliced, module, 12.0 / len(kept))
        assert torch.allclose(made.delta(module).double(), truth, atol=1e-6)
    assert all(p is q for p, q in zip(parameters, made.trainable({"A", "B"}), strict=True))
    made.model(input_ids=rows()).logits.sum().backward()
    made.load(sliced, scale=0.5)
    module = next(iter(keep))
    assert torch.allclose(made.delta(module).double(), dense(made, sliced, module, 0.5), atol=1e-6)
    made.load(state)
    expected = logits(dense_model(made, "bert", state, 3.0))
    assert torch.allclose(logits(made.model), expected, atol=1e-5)
    made.model(input_ids=rows()).logits.sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in parameters)


BAD = {
    "unknown name": ({"bert.nowhere.A": (4, 16)}, "bert.nowhere.A"),
    "memory": ({"server/momentum": (1,)}, "server/momentum"),
    "part of another kind": ({"{q}.R": (4, 4)}, "{q}.R"),
    "wrong width": ({"{q}.A": (4, 15)}, r"\(4, 15\).*\(4, 16\)"),
    "A of another rank alone": ({"{q}.A": (3, 16)}, r"{q}.B.*\(16, 4\).*\(16, 3\)"),
    "flat A": ({"{q}.A": (64,)}, r"{q}.A.*\(64,\).*\(4, 16\)"),
    "scalar B": ({"{q}.B": ()}, r"{q}.B.*\(\).*\(16, 4\)"),
    "P alone": ({"{q}.P": (16, 2)}, "{q}.P alone"),
    "P and Q that do not meet": (
        {"{q}.P": (16, 2), "{q}.Q": (3, 16)},
        r"{q}.Q.*\(3, 16\).*\(2, 16\)",
    ),
    "wrong D": ({"{q}.D": (16, 2)}, r"{q}.D.*\(16, 2\).*\(16, 16\)"),
    "wrong head": ({"head.classifier.weight": (2, 16)}, r"head.*\(2, 16\).*\(3, 16\)"),
}


@pytest.mark.parametrize("tensors, message", BAD.values(), ids=BAD)
def test_what_does_not_fit_is_refused_and_nothing_changes(tensors, message):
    """An error that names the tensor and both shapes; good tensors beside it are not loaded."""
    query = "bert.encoder.layer.0.attention.self.query"
    made = adapter("bert", "lora", target_modules=None)
    before = logits(made.model)
    wrong = {k.format(q=query): torch.ones(shape) for k, shape in tensors.items()}
    good = {k: t + 1 for k, t in made.initial().items() if "layer.1" in k}
    with pytest.raises(UserError, match=message.format(q=query)):
        made.load(good | wrong)
    assert torch.equal(logits(made.model), before)
