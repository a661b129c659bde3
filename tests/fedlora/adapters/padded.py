"""Rows of different lengths, padded into one batch or one at a time; everything in float64."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedlora.adapters import Adapter
from fedlora.adapters.stacked import stacked
from fedlora.streams import stream
from fedlora.tensors import Tensors

LENGTHS = (7, 3, 5, 6, 2, 4)  # tokens a row


def row(i: int) -> dict[str, Tensor]:
    """Row i alone, without padding."""
    tokens = torch.randint(1, 30, (1, LENGTHS[i]), generator=stream(0, "row", i))
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


def batch(rows: range) -> dict[str, Tensor]:
    """The rows, padded on the right to the longest."""
    alone = [row(i) for i in rows]
    longest = max(LENGTHS[i] for i in rows)
    return {
        name: torch.cat([F.pad(one[name], (0, longest - one[name].shape[1])) for one in alone])
        for name in alone[0]
    }


def losses(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """(rows,): a cross-entropy whose label is in the row's first token."""
    labels = inputs["input_ids"][:, 0] % 3
    return F.cross_entropy(model(**inputs).logits, labels, reduction="none")


def undropped(made: Adapter) -> Adapter:
    """In training mode, with every dropout at zero."""
    made.model.train()
    for module in made.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return made


def gradients(made: Adapter, parts: set[str], rows: range) -> tuple[Tensor, Tensors]:
    """The slow truth: losses, and gradients (rows, *shape) by name, from one row after another."""
    made.trainable(parts)
    trained = {k: p for k, p in made.live().items() if p.requires_grad}
    each, found = [], []
    for i in rows:
        loss = losses(made.model, row(i))
        each.append(loss.detach())
        grads = torch.autograd.grad(loss.sum(), list(trained.values()), materialize_grads=True)
        found.append(dict(zip(trained, grads, strict=True)))
    return torch.cat(each), {k: torch.stack([g[k] for g in found]) for k in trained}


@contextmanager
def one_pass(made: Adapter, copies: Tensors, shares: Sequence[int]) -> Iterator[None]:
    """Inside, the model takes one batch, so many rows of each copy."""
    with stacked(made, copies) as enter, enter(copies, shares, None):
        yield


def close(got: Tensor, truth: Tensor, relative: float = 1e-10) -> bool:
    return got.shape == truth.shape and bool(
        (got - truth).abs().max() <= relative * truth.abs().max()
    )


@pytest.fixture
def in_float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What casts to fp32 casts to float64 in place, where a wrong equation cannot hide behind
    rounding; models still have to be turned with `double`."""
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    yield


def traces(made: Adapter) -> dict[str, object]:
    """What might be left behind on a model: attributes and hooks of modules, and what parameters
    carry."""
    found: dict[str, object] = {}
    for name, module in made.model.named_modules():
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
        found[name] = (set(module.__dict__), tuple(map(len, hooks)), module.training)
    for name, p in made.model.named_parameters():
        found[name] = (set(p.__dict__), p.requires_grad, p.grad is None, type(p))
    return found
