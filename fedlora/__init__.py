"""fedlora: federated LoRA fine-tuning of language models, on Flower."""

from fedlora.strategy import Base, Client, Round, Strategy, Update
from fedlora.tensors import Tensors

__version__ = "0.1.0"
__all__ = ["Base", "Client", "Round", "Strategy", "Tensors", "Update"]
