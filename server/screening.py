"""A look at every update before it may touch the state."""

import math

import torch

from fedlora.tensors import Tensors, largest

# Far above any entry of an adapter or a gradient, and low enough that products of three factors and
# sums of their squares stay finite in fp32: what is computed of accepted updates does not overflow.
LARGEST = 1e6


def fault(update: Tensors, expected: Tensors, norm_bound: float | None) -> str:
    """Why an update is not used, or "" where nothing is wrong with it.

    Args:
        expected: what the method would upload of the view that was sent: names and shapes, and
            the values that the change is measured from.
    """
    if update.keys() != expected.keys():
        odd = sorted(update.keys() ^ expected.keys())
        return f"its tensors are not those of the method: {', '.join(odd[:4])}"
    high: dict[str, float] = {}
    for name, tensor in update.items():
        if tensor.shape != expected[name].shape:
            return f"{name} is {tuple(tensor.shape)}, not {tuple(expected[name].shape)}"
        high[name] = largest(tensor)
        if not math.isfinite(high[name]):
            return f"{name} is not finite"
    if norm_bound is not None and (norm := _change(update, expected)) > norm_bound:
        return f"the norm of its change is {norm:.4g}, above run.norm_bound = {norm_bound:g}"
    name = max(high, key=high.__getitem__, default="")
    if name and high[name] > LARGEST:
        return f"{name} has an entry of {high[name]:.4g}, above {LARGEST:g}"
    return ""


def _change(update: Tensors, expected: Tensors) -> float:
    """The L2 norm of all differences together, summed in float64; one tensor's are in memory."""
    norms = (
        torch.linalg.vector_norm(t - expected[k], dtype=torch.float64) for k, t in update.items()
    )
    return math.hypot(*map(float, norms))
