"""Dense float64: slow, multiplied out, and in formulas of its own."""

from collections.abc import Mapping

import torch
from torch import Tensor


def deltas(
    tensors: Mapping[str, Tensor], scale: float, shapes: Mapping[str, tuple[int, int]]
) -> dict[str, Tensor]:
    """W − W0 of every module, (m, n) in float64: s·B·A, s·B·R·A or VeRA's diag(b)·U·diag(d)·V, and
    the residual P·Q + D."""
    out: dict[str, Tensor] = {}
    for module, (m, n) in shapes.items():
        t = {k[len(module) + 1 :]: v.double() for k, v in tensors.items() if k.startswith(module)}
        if "d" in t:
            U, V = tensors["vera.U"].double(), tensors["vera.V"].double()
            W = torch.diag(t["b"]) @ U[:m] @ torch.diag(t["d"]) @ V[:, :n]
        else:
            middle = t.get("R", torch.eye(t["A"].shape[0], dtype=torch.float64))
            W = scale * (t["B"] @ middle @ t["A"])
        if "P" in t:
            W = W + t["P"] @ t["Q"]
        out[module] = W + t["D"] if "D" in t else W
    return out


def worst(ours: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> float:
    """The largest relative error in the Frobenius norm over modules."""
    if ours.keys() != truth.keys():
        raise AssertionError(f"other modules: {sorted(ours.keys() ^ truth.keys())}")
    return max(
        float((ours[k].double() - truth[k].double()).norm() / truth[k].double().norm().clamp(1e-30))
        for k in truth
    )
