"""The weighted mean, folded in one update at a time, in fp32 and in the order of the clients."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from fedlora.errors import MethodError
from fedlora.tensors import Tensors


class Mean:
    """sum_i w_i x_i / sum_i w_i over dictionaries of tensors, with one accumulator in memory.

    Each update moves the mean so far by its share, x̄ ← x̄ + (x_i − x̄) w_i / Σ_{j≤i} w_j: what all
    updates agree on comes out to the bit, so that a part nobody changed is a part unchanged.
    """

    def __init__(self) -> None:
        self.total = 0.0
        self._mean: Tensors = {}

    def add(self, tensors: Mapping[str, Tensor], weight: float) -> None:
        """Fold in one update, tensor by tensor. All updates of a mean have the same names and
        shapes."""
        self.total += weight
        if not self._mean:
            self._mean = _copied(tensors)
            return
        if tensors.keys() != self._mean.keys():
            odd = sorted(tensors.keys() ^ self._mean.keys())
            raise MethodError(f"updates of one mean differ in their tensors: {', '.join(odd)}")
        share = weight / self.total if weight else 0.0
        for name, tensor in tensors.items():
            self._mean[name].lerp_(tensor.float(), share)

    def result(self) -> Tensors:
        """The mean; empty when nothing was added."""
        return dict(self._mean)


def _copied(tensors: Mapping[str, Tensor]) -> Tensors:
    """The tensors in fp32 and memory of their own.

    On the CPU that is one block, and numpy's, which asks for large pages: to page in hundreds of MB
    in small ones costs as much as adding half a dozen updates.
    """
    about = [(t.device.type, t.numel()) for t in tensors.values()]  # of which one is read at a time
    if any(kind != "cpu" for kind, _ in about):
        return {k: t.to(torch.float32, copy=True) for k, t in tensors.items()}
    sizes = [size for _, size in about]
    block = torch.from_numpy(np.empty(sum(sizes), np.float32)).split(sizes)
    return {
        k: piece.view(t.shape).copy_(t)
        for (k, t), piece in zip(tensors.items(), block, strict=True)
    }
