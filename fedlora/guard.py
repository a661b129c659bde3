"""Calls into a method, so that its mistakes name its class, the hook, the tensor and the shapes."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fedlora.errors import MethodError, UserError
from fedlora.strategy import Strategy
from fedlora.tensors import Tensors, is_memory


def called(strategy: Strategy, hook: str, *arguments: Any) -> Any:
    """`strategy.hook(*arguments)`; whatever it raises becomes a MethodError that says where."""
    try:
        return getattr(strategy, hook)(*arguments)
    except UserError:
        raise
    except Exception as e:
        where = f"{type(strategy).__name__}.{hook}"
        raise MethodError(f"{where} raised {type(e).__name__}: {e}") from e


def checked(strategy: Strategy, hook: str, result: Any, state: Mapping[str, Tensor]) -> Tensors:
    """What `aggregate` or `place` returned, held against the state: known names, same shapes.

    New names are allowed for memory and for the residual, whose factors may grow."""
    where = f"{type(strategy).__name__}.{hook}"
    if not isinstance(result, Mapping):
        raise MethodError(f"{where} returned {type(result).__name__}, not a dictionary of tensors")
    for name, tensor in result.items():
        if tensor is None or is_memory(name):
            continue
        if not isinstance(tensor, Tensor):
            raise MethodError(f"{where} returned {type(tensor).__name__} for {name}, not a tensor")
        if name.rpartition(".")[2] in {"P", "Q", "D"}:
            continue
        if name not in state:
            raise MethodError(f"{where} returned '{name}', which the state does not have")
        if tensor.shape != state[name].shape:
            raise MethodError(
                f"{where} returned {name} in shape {tuple(tensor.shape)}, "
                f"where the state has {tuple(state[name].shape)}"
            )
    return dict(result)
