"""Adapters: low-rank parts on a pretrained model, the frozen residual, their tensors by name."""

from fedlora.adapters.adapter import PARTS, Adapter

__all__ = ["PARTS", "Adapter"]
