"""The loss's gradient with respect to frozen weights, a group of layers at a time.

Shapes, for a layer of m outputs and n inputs: x (…, n), g = dL/dy (…, m), G = sum g x^T (m, n).
With the weights frozen no full-model gradient is ever held: only x and g of the group.

Reference: the full fine-tuning step of LoRA-SB, arXiv:2411.19557, section 3.
"""

from collections.abc import Callable, Iterable, Sequence
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
        modules: paths of adapted layers; each costs its activations and one (m, n) fp32 matrix.
        batches: whatever `losses` takes.
        losses: (model, batch) -> one loss a row, (rows,).

    Returns:
        module path -> (m, n), fp32, on the CPU; zero where the loss does not depend on a layer.
    """
    device = adapter.model.device
    totals = {k: torch.zeros(adapter.shapes[k], device=device) for k in modules}
    training = adapter.model.training
    adapter.model.eval()
    try:
        for batch in batches:
            _add(totals, adapter, batch, losses)
    finally:
        adapter.model.train(training)
    return {k: total.cpu() for k, total in totals.items()}


def _add(totals: dict[str, Tensor], adapter: Adapter, batch: Any, losses: Losses) -> None:
    seen: list[tuple[str, Tensor, Tensor]] = []  # a layer that is called twice is here twice

    def keep(module: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
        def hook(_: nn.Module, inputs: tuple[Any, ...], y: Tensor) -> None:
            # The first layer's output depends on nothing that is trained.
            seen.append((module, inputs[0].detach(), y.requires_grad_()))

        return hook

    handles = [adapter.base(k).register_forward_hook(keep(k)) for k in totals]
    try:
        with torch.enable_grad():
            loss = losses(adapter.model, batch).sum()
    finally:
        for handle in handles:
            handle.remove()
    outputs = [y for _, _, y in seen]
    given = torch.autograd.grad(loss, outputs, materialize_grads=True)
    for (module, x, _), g in zip(seen, given, strict=True):
        totals[module] += torch.einsum("...m,...n->mn", g.float(), x.float())
