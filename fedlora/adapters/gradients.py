"""The loss's gradient with respect to frozen weights, of many layers in one pass over the rows.

Shapes, for a layer of m outputs and n inputs: x (…, n), g = dL/dy (…, m), G = sum g x^T (m, n).
The backward pass adds to each layer's G when it comes to the layer, so that besides the sums only
x is held, and g of one layer at a time.

Reference: the full fine-tuning step of LoRA-SB, arXiv:2411.19557, section 3.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fedlora.adapters.adapter import Adapter

Losses = Callable[[nn.Module, Any], Tensor]


def gradients(
    adapter: Adapter, modules: Sequence[str], batches: Iterable[Any], losses: Losses
) -> dict[str, Tensor]:
    """Gradients of the loss, summed over all rows of all batches, with respect to W0.

    The model is taken as it is loaded, its adapter included, without dropout. Nobody's
    `requires_grad` or `.grad` changes.

    Args:
        modules: paths of adapted layers; each costs its inputs and one (m, n) fp32 matrix.
        batches: whatever `losses` takes.
        losses: (model, batch) -> one loss a row, (rows,).

    Returns:
        module path -> (m, n), fp32, on the model's device; zero where the loss does not depend on
        a layer.
    """
    device = adapter.model.device
    totals = {k: torch.zeros(adapter.shapes[k], device=device) for k in modules}
    with summing(adapter, totals) as start:
        for batch in batches:
            loss = losses(adapter.model, batch).sum()
            if loss.requires_grad:
                torch.autograd.grad(loss, start, allow_unused=True)
    return totals


@contextmanager
def summing(adapter: Adapter, totals: dict[str, Tensor]) -> Iterator[Tensor]:
    """Inside, without dropout, a backward pass to what this yields adds each layer's G to its
    total."""
    start = torch.zeros((), device=adapter.model.device, requires_grad=True)

    def noted(total: Tensor) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
        return lambda _, inputs, y: _Noted.apply(y, inputs[0], start, total)

    handles = [adapter.base(k).register_forward_hook(noted(total)) for k, total in totals.items()]
    training = adapter.model.training
    adapter.model.eval()
    try:
        with torch.enable_grad():
            yield start
    finally:
        adapter.model.train(training)
        for handle in handles:
            handle.remove()


class _Noted(torch.autograd.Function):
    """A layer's output as it is. Its gradient, on the way back, meets the layer's input. That `y`
    depends on `start` makes autograd come by where nothing before the layer is trained."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, start: Tensor, total: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.total = total
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (x,), (g,) = ctx.saved_tensors, grads
        ctx.total.addmm_(g.flatten(0, -2).float().T, x.flatten(0, -2).float())
        return g, None, None, None
