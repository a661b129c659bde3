"""bitsandbytes, for those alone who ask for a quantised base.

PEFT imports it wherever it is installed. That takes a second or two, and asks CUDA what it can do,
after which no process can be forked that uses a GPU. So a process of ours calls `late` before it
imports anything else, and loading a quantised base calls `needed`.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import find_spec
from types import ModuleType

from fedlora.errors import UserError

NAME = "bitsandbytes"


def late() -> None:
    """From now on PEFT is imported as if bitsandbytes were not installed; nothing is imported yet.
    Where either is in use already, all stays as it is."""
    if not {"peft", NAME} & set(sys.modules):
        sys.meta_path.insert(0, _Finder())


def needed() -> None:
    """Have PEFT put adapters on quantised layers. Raises UserError where the package is missing."""
    if find_spec(NAME) is None:
        raise UserError(
            "model.quantize needs the package bitsandbytes: pip install 'fedlora[quantized]'"
        )
    from peft import import_utils

    for known in (import_utils.is_bnb_available, import_utils.is_bnb_4bit_available):
        known.cache_clear()  # PEFT asks them whenever it makes an adapter


@contextmanager
def hidden() -> Iterator[None]:
    """Inside, importing bitsandbytes fails as where it is not installed."""
    sys.modules[NAME] = None  # type: ignore[assignment]  # Python's way of saying so
    try:
        yield
    finally:
        del sys.modules[NAME]


class _Finder(MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name == "peft" else None
        if spec and spec.origin:
            spec.loader = _Loader(name, spec.origin)
        return spec


class _Loader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        with hidden():
            super().exec_module(module)
            from peft import import_utils

            import_utils.is_bnb_available()  # what it says now is what it remembers
