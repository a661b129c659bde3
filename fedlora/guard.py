"""Calls into a method, so that its mistakes name its class, the hook, the tensor and the shapes."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fedlora.errors import MethodError, UserError
from fedlora.settings import nearest
from fedlora.strategy import Strategy
from fedlora.tensors import RESIDUAL, Tensors, is_memory, module_of, part_of

Changes = dict[str, Tensor | None]


def called(strategy: Strategy, hook: str, *arguments: Any) -> Any:
    """`strategy.hook(*arguments)`; whatever it raises becomes a MethodError that says where."""
    try:
        return getattr(strategy, hook)(*arguments)
    except UserError:
        raise
    except Exception as e:
        where = f"{type(strategy).__name__}.{hook}"
        raise MethodError(f"{where} raised {type(e).__name__}: {e}") from e


def checked(strategy: Strategy, hook: str, result: Any) -> Tensors:
    """What a hook returned, in fp32. Raises MethodError where it is no dictionary of tensors."""
    where = f"{type(strategy).__name__}.{hook}"
    if not isinstance(result, Mapping):
        raise MethodError(f"{where} returned {type(result).__name__}, not a dictionary of tensors")
    for name, tensor in result.items():
        if not isinstance(tensor, Tensor):
            raise MethodError(f"{where} returned {type(tensor).__name__} for {name}, not a tensor")
    return {name: tensor.detach().float() for name, tensor in result.items()}


def changes(strategy: Strategy, hook: str, result: Any, state: Mapping[str, Tensor]) -> Changes:
    """What `begin`, `aggregate` or `place` returned, held against the state: known names, same
    shapes. New names are allowed for memory and for a layer's residual, whose factors may grow;
    None removes an entry."""
    where = f"{type(strategy).__name__}.{hook}"
    removed = [k for k, t in result.items() if t is None] if isinstance(result, Mapping) else []
    if removed:
        result = {k: t for k, t in result.items() if t is not None}
    kept = checked(strategy, hook, result)
    for name, tensor in kept.items():
        known = state.get(name)
        if (known is not None and known.shape == tensor.shape) or is_memory(name):
            continue
        if part_of(name) in RESIDUAL and module_of(name) in {module_of(k) for k in state}:
            continue
        if name not in state:
            raise MethodError(
                f"{where} returned '{name}', which the state does not have{nearest(name, state)}"
            )
        if tensor.shape != state[name].shape:
            raise MethodError(
                f"{where} returned {name} in shape {tuple(tensor.shape)}, "
                f"where the state has {tuple(state[name].shape)}"
            )
    return kept | dict.fromkeys(removed)
