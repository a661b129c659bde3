"""Which names and shapes an adapter can hold: what a model's adapter checks when it is loaded, and
the harness without a model.

Shapes: a layer has m outputs and n inputs; the others are in `fedlora.tensors`.
"""

from collections.abc import Mapping
from difflib import get_close_matches

from fedlora.errors import UserError
from fedlora.tensors import RESIDUAL, Tensors, module_of, part_of

Layers = Mapping[str, tuple[int, int]]  # module path -> (m, n)


def fitting(kind: str, layers: Layers, tensors: Tensors, own: Tensors) -> dict[str, int]:
    """The rank of each layer once `tensors` are in an adapter that has the tensors `own`.

    Raises UserError for a name that it lacks, or a shape that does not fit: A and B may be of
    another rank than before, the same for both, and P and Q of any.
    """
    known = set(own) | {f"{module}.{part}" for module in layers for part in RESIDUAL}
    for name in tensors:
        if name not in known:
            near = get_close_matches(name, known, n=1, cutoff=0)[0]
            raise UserError(
                f"there is no {name} in this {kind} adapter; the nearest name is {near}."
            )
    ranks = {} if kind == "vera" else {k: _rank(k, tensors, own) for k in layers}
    for name in {**own, **tensors}:
        have = tuple((tensors[name] if name in tensors else own[name]).shape)
        want = _shape(name, kind, layers, ranks, tensors, own)
        if have != want:
            raise UserError(f"{name} has the shape {have}; this adapter wants {want} there.")
    return ranks


def _rank(module: str, tensors: Tensors, own: Tensors) -> int:
    """What A says, else B, else the rank at present; a flat A or B is found out later."""
    A, B = tensors.get(f"{module}.A"), tensors.get(f"{module}.B")
    if A is not None and A.ndim == 2:
        return A.shape[0]
    return B.shape[1] if B is not None and B.ndim == 2 else own[f"{module}.A"].shape[0]


def _shape(
    name: str, kind: str, layers: Layers, ranks: dict[str, int], tensors: Tensors, own: Tensors
) -> tuple[int, ...]:
    """The shape that a tensor must have, given the layers' ranks and, for Q, what P says."""
    module, part = module_of(name), part_of(name)
    if part == "head" or module not in layers or (kind == "vera" and name in own):
        return tuple(own[name].shape)
    m, n = layers[module]
    if part in "PQ":
        P, Q = (tensors.get(f"{module}.{x}") for x in "PQ")
        if P is None or Q is None:
            raise UserError(f"{module} has {name} alone: P and Q only mean something together.")
        rho = P.shape[-1] if P.ndim else 0
        return (m, rho) if part == "P" else (rho, n)
    r = ranks.get(module, 0)
    return {"A": (r, n), "B": (m, r), "R": (r, r), "M": (m,), "D": (m, n)}[part]
