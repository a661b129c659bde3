"""The frozen model that a method's `begin` sees, with random values and no model behind it.

Shapes: modules are (m, n), outputs and inputs, none of them square.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from fedlora.strategy import Scaling
from fedlora.streams import stream
from fedlora.tensors import Tensors

SHAPES = {"layer.0.query": (24, 40), "layer.0.output": (60, 28)}
ALPHAS = {"lora": 10.0, "lora-sb": 4.0, "vera": 4.0}  # LoRA's s = 2.5 at r = 4, no round number
PARTS = {"lora": {"A", "B"}, "lora-sb": {"R"}, "vera": {"d", "b"}}
HEAD = {"head.classifier.weight": (3, 28), "head.classifier.bias": (3,)}


@dataclass
class FakeBase:
    """A `fedlora.Base` of random weights, gradients and initial parts, the same for a seed.

    Attributes:
        head: whether there is a task head beside the adapter; language models have none.
        asked: whose gradients were asked for, in order.
    """

    kind: str = "lora"
    rank: int = 4
    shapes: Mapping[str, tuple[int, int]] = field(default_factory=lambda: dict(SHAPES))
    learning_rate: float = 1e-3
    seed: int = 5
    head: bool = True
    asked: list[str] = field(default_factory=list)

    @property
    def scale(self) -> float:
        return self.scaling.at(self.rank)

    @property
    def scaling(self) -> Scaling:
        return Scaling(self.rank, ALPHAS[self.kind])

    @property
    def parts(self) -> set[str]:
        """The parts that can be trained on this adapter."""
        return PARTS[self.kind] | ({"head"} if self.head else set())

    def initial(self) -> Tensors:
        tensors: Tensors = {}
        for k, (m, n) in self.shapes.items():
            if self.kind == "vera":
                tensors |= {f"{k}.d": torch.full((self.rank,), 0.1), f"{k}.b": torch.zeros(m)}
                continue
            tensors[f"{k}.A"] = self.draw(f"{k}.A", self.rank, n) / n**0.5
            tensors[f"{k}.B"] = torch.zeros(m, self.rank)
            if self.kind == "lora-sb":
                tensors[f"{k}.R"] = torch.zeros(self.rank, self.rank)
        if self.kind == "vera":
            M, N = (max(sizes) for sizes in zip(*self.shapes.values(), strict=True))
            tensors["vera.U"] = self.draw("vera.U", M, self.rank)
            tensors["vera.V"] = self.draw("vera.V", self.rank, N)
        head = HEAD if self.head else {}
        return tensors | {k: self.draw(k, *shape) for k, shape in head.items()}

    def weight(self, module: str) -> Tensor:
        return self.draw(f"{module}.weight", *self.shapes[module])

    def gradient(self, module: str, over: Literal["server", "clients", "sketch"]) -> Tensor:
        self.asked.append(over)
        return self.draw(f"{module}.gradient.{over}", *self.shapes[module])

    def generator(self, name: str) -> torch.Generator:
        return stream(self.seed, "base", name)

    def draw(self, name: str, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=stream(self.seed, "fake", name))


class Shadow(FakeBase):
    """The same shapes without values, as `fedlora cost` has them."""

    def initial(self) -> Tensors:
        return {k: torch.empty_like(t, device="meta") for k, t in super().initial().items()}

    def weight(self, module: str) -> Tensor:
        return torch.empty(*self.shapes[module], device="meta")

    def gradient(self, module: str, over: Literal["server", "clients", "sketch"]) -> Tensor:
        return torch.empty(*self.shapes[module], device="meta")
