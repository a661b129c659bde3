"""fedlora: federated LoRA fine-tuning of language models, on Flower."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedlora.strategy import Base, Client, Round, Strategy, Update
    from fedlora.tensors import Tensors

__version__ = "0.3.0"
__all__ = ["Base", "Client", "Round", "Strategy", "Tensors", "Update"]


def __getattr__(name: str) -> Any:
    """The contract, imported on first use: a node's process for one message needs no torch."""
    if name not in __all__:
        raise AttributeError(f"module 'fedlora' has no attribute '{name}'")
    return getattr(
        import_module("fedlora.tensors" if name == "Tensors" else "fedlora.strategy"), name
    )
