"""Names of adapter tensors, and the flat dictionary of them that everything exchanges.

A tensor is named `<module path>.<part>`. Shapes, for a layer W of m outputs and n inputs, rank r:

    A (r, n)   B (m, r)   R (r, r)      LoRA's factors, and Fed-SB's middle
    M (m,)                              DoRA's magnitude, the norms of W's rows
    d (r,)     b (m,)                   VeRA's vectors
    P (m, rho) Q (rho, n) or D (m, n)   the frozen residual; its scale is inside
    vera.U (m_max, r)  vera.V (r, n_max)  VeRA's projections, one pair for the model
    head.<parameter>                    a task head trained in full

Names under `server/` and `client/<id>/` are a method's memory on the server and never travel.
"""

from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor

Tensors = dict[str, Tensor]

RESIDUAL = frozenset({"P", "Q", "D"})
TRAINABLE = frozenset({"A", "B", "R", "M", "d", "b", "head"})  # of one adapter or another


def part_of(name: str) -> str:
    """The part that a tensor is: `layer.0.query.A` is an `A`, `head.classifier.bias` is `head`."""
    return "head" if name.startswith("head.") else name.rpartition(".")[2]


def module_of(name: str) -> str:
    """The module path in front of the part."""
    return name.rpartition(".")[0]


def is_memory(name: str) -> bool:
    """Whether a state entry is a method's own memory, which is checkpointed and never sent."""
    return name.startswith(("server/", "client/"))


def select(tensors: Mapping[str, Tensor], parts: Collection[str]) -> Tensors:
    """The travelling tensors whose part is among `parts`."""
    return {k: t for k, t in tensors.items() if not is_memory(k) and part_of(k) in parts}


def modules(tensors: Iterable[str], part: str) -> list[str]:
    """The module paths that have this part, in order."""
    return [module_of(k) for k in tensors if not is_memory(k) and part_of(k) == part]


def place(tensor: Tensor) -> tuple[object, ...]:
    """Where a tensor's values lie, and how often they were written over: while it is held, one
    with the same place has the same values."""
    shape = tensor.dtype, tensor.shape, tensor.stride()
    writes = object() if tensor.is_inference() else tensor._version  # which those do not count
    return tensor.device, tensor.data_ptr(), *shape, writes


def largest(tensor: Tensor) -> float:
    """The largest absolute value, in one pass and with no temporary; NaN where there is one."""
    if not tensor.numel():
        return 0.0
    low, high = torch.aminmax(tensor)
    return max(-float(low), float(high))


def nbytes(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of all tensors, in the formats they have."""
    return sum(t.numel() * t.element_size() for t in tensors.values())
