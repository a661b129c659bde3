"""Adapters: low-rank parts on a pretrained model, the frozen residual, their tensors by name."""

from fedlora.adapters.adapter import Adapter
from fedlora.adapters.recipe import PARTS

__all__ = ["PARTS", "Adapter"]
