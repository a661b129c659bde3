"""Federated LoRA methods, one file each, and how they are found by name."""

import importlib
import sys
from importlib.metadata import entry_points
from pathlib import Path

from fedlora.declared import declared
from fedlora.errors import MethodError, UserError
from fedlora.settings import nearest
from fedlora.strategy import Strategy

GROUP = "fedlora.strategies"

BUILTIN = {
    "fedit": "strategies.fedit:FedIT",
    "ffa": "strategies.ffa:FFA",
    "fedex": "strategies.fedex:FedEx",
    "fedsa": "strategies.fedsa:FedSA",
    "fedsb": "strategies.fedsb:FedSB",
    "fslora": "strategies.fslora:FSLoRA",
    "local": "strategies.local:Local",
}


def names() -> list[str]:
    """The methods that have a short name: the built-in ones, then those of installed packages."""
    return list(_targets())


def load(name: str) -> type[Strategy]:
    """The method called `name`: built in, of the entry-point group `fedlora.strategies`, or
    `my_module:MyMethod` with a module of the current directory or an installed one.

    Raises UserError where there is no such method, MethodError where it is none, cannot be read, or
    says of itself what cannot be (see `fedlora.declared`).
    """
    target = name if ":" in name else _targets().get(name)
    if target is None:
        known = _targets()
        raise UserError(
            f"there is no method '{name}'{nearest(name, known)} (known: {', '.join(known)}; "
            "one of your own is written my_module:MyMethod)"
        )
    found = _imported(target)
    if not (isinstance(found, type) and issubclass(found, Strategy)):
        raise MethodError(f"{target} is no method: make it a class that extends fedlora.Strategy")
    declared(found)
    return found


def settings() -> set[str]:
    """The settings of all built-in methods: what one configuration for many methods may hold."""
    return {field for name in BUILTIN for field in load(name).model_fields}


def _targets() -> dict[str, str]:
    return {e.name: e.value for e in entry_points(group=GROUP)} | BUILTIN


def _imported(target: str) -> object:
    module, _, attribute = target.partition(":")
    try:
        if (here := str(Path.cwd())) not in sys.path:
            sys.path.insert(0, here)
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as e:
        if e.name is None or not f"{module}.".startswith(f"{e.name}."):
            raise MethodError(f"{module} needs a module that is not installed: {e.name}") from e
        raise UserError(
            f"there is no module '{module}' for the method {target}: run where {module}.py lies, "
            "or install its package"
        ) from None
    except AttributeError as e:
        raise UserError(f"the method {target} is not there: {e}") from None
    except Exception as e:
        raise MethodError(f"{module} raised {type(e).__name__} when imported: {e}") from e
