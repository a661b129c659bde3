"""A look at every update before it may touch the state."""

import math

import torch

from fedlora.tensors import Tensors


def fault(update: Tensors, expected: Tensors, norm_bound: float | None) -> str:
    """Why an update is not used, or "" where nothing is wrong with it.

    Args:
        expected: what the method would upload of the view that was sent: names and shapes, and
            the values that the change is measured from.
    """
    if update.keys() != expected.keys():
        odd = sorted(update.keys() ^ expected.keys())
        return f"its tensors are not those of the method: {', '.join(odd[:4])}"
    square = 0.0
    for name, tensor in update.items():
        if tensor.shape != expected[name].shape:
            return f"{name} is {tuple(tensor.shape)}, not {tuple(expected[name].shape)}"
        if not bool(torch.isfinite(tensor).all()):
            return f"{name} is not finite"
        square += float((tensor - expected[name]).double().square().sum())
    norm = math.sqrt(square)
    if norm_bound is not None and norm > norm_bound:
        return f"the norm of its change is {norm:.4g}, above run.norm_bound = {norm_bound:g}"
    return ""
