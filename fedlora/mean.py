"""The weighted mean, folded in one update at a time, in fp32 and in the order of the clients."""

import torch

from fedlora.tensors import Tensors


class Mean:
    """sum_i w_i x_i / sum_i w_i over dictionaries of tensors, with one accumulator in memory."""

    def __init__(self) -> None:
        self.total = 0.0
        self._sum: Tensors = {}

    def add(self, tensors: Tensors, weight: float) -> None:
        """Fold in one update. All updates of a mean have the same names and shapes."""
        if not self._sum:
            self._sum = {k: t.float() * weight for k, t in tensors.items()}
        else:
            if tensors.keys() != self._sum.keys():
                odd = sorted(tensors.keys() ^ self._sum.keys())
                raise ValueError(f"updates of one mean differ in their tensors: {', '.join(odd)}")
            for name, tensor in tensors.items():
                self._sum[name].add_(tensor.float(), alpha=weight)
        self.total += weight

    def result(self) -> Tensors:
        """The mean; empty when nothing was added."""
        return {k: torch.div(t, self.total) for k, t in self._sum.items()}
