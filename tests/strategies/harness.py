"""What every method is held against: a small federation, and dense float64 as the slow truth.

The federation is the contract acted out without models or wires: clients copy what they are sent,
"train" by adding noise to the trained parts, and keep what stays with them. The truth multiplies
everything out, in formulas of its own.

Shapes: modules are (m, n), outputs and inputs, none of them square.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from fedlora import Client, Round, Strategy, Tensors, Update
from fedlora.strategy import Scaling, merge, stays
from fedlora.streams import stream
from fedlora.tensors import part_of, select

SHAPES = {"layer.0.query": (24, 40), "layer.0.output": (60, 28)}
ALPHAS = {"lora": 10.0, "lora-sb": 4.0, "vera": 4.0}  # LoRA's s = 2.5 at r = 4, no round number
PARTS = {"lora": {"A", "B"}, "lora-sb": {"R"}, "vera": {"d", "b"}}
HEAD = {"head.classifier.weight": (3, 28), "head.classifier.bias": (3,)}


@dataclass
class FakeBase:
    """The frozen model that `begin` sees: random weights, gradients and initial parts."""

    kind: str = "lora"
    rank: int = 4
    shapes: Mapping[str, tuple[int, int]] = field(default_factory=lambda: dict(SHAPES))
    learning_rate: float = 1e-3
    seed: int = 5
    asked: list[str] = field(default_factory=list)  # whose gradients were asked for

    @property
    def scale(self) -> float:
        return Scaling(self.rank, ALPHAS[self.kind]).at(self.rank)

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
        return tensors | {k: self.draw(k, *shape) for k, shape in HEAD.items()}

    def weight(self, module: str) -> Tensor:
        return self.draw(f"{module}.weight", *self.shapes[module])

    def gradient(self, module: str, over: Literal["server", "clients", "sketch"]) -> Tensor:
        self.asked.append(over)
        return self.draw(f"{module}.gradient.{over}", *self.shapes[module])

    def generator(self, name: str) -> torch.Generator:
        return stream(self.seed, "base", name)

    def draw(self, name: str, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=stream(self.seed, "fake", name))


class Federation:
    """Server and clients of one run; everything that happened last is kept for inspection."""

    def __init__(
        self,
        strategy: Strategy,
        kind: str | None = None,
        *,
        ranks: Sequence[int] = (4, 4, 4, 4),
        wire: torch.dtype = torch.float32,
        base: FakeBase | None = None,
    ) -> None:
        self.strategy = strategy
        self.kind = kind or strategy.adapter
        self.base = base or FakeBase(self.kind)
        self.wire = wire
        scaling = Scaling(self.base.rank, ALPHAS[self.kind])
        self.clients = [
            Client(f"client-{i}", k, strategy.scale(scaling, k), examples=10 + 7 * i)
            for i, k in enumerate(ranks)
        ]
        self.state = strategy.begin(self.base)
        self.kept: dict[str, Tensors] = {}  # by client: what stays there
        self.number = 0
        self.updates: list[Update] = []

    def round(self, number: int | None = None) -> Round:
        return Round(self.number if number is None else number, seed=3, wire=self.wire)

    def view(self, client: Client, round: Round) -> Tensors:
        """The whole of what a client's adapter is to be, as it arrives over the wire."""
        sent = self.strategy.broadcast(self.state, client, round)
        return {k: self.crossed(k, t) for k, t in sent.items()}

    def local(self, client: Client, round: Round) -> Tensors:
        """A client's adapter once it has copied its view: what stays with it wins."""
        return {**self.view(client, round), **self.kept.get(client.id, {})}

    def crossed(self, name: str, tensor: Tensor) -> Tensor:
        trained = PARTS[self.kind] | {"head"}
        lossy = part_of(name) in trained & self.strategy.trained
        return tensor.to(self.wire).float() if lossy else tensor.clone()

    def train(self, client: Client, weight: float) -> Update:
        """One client's round: every trained part moves, by noise of the client's own."""
        round = self.round()
        sent = self.view(client, round)
        tensors = self.local(client, round)
        optimised = self.strategy.trains(round) & (PARTS[self.kind] | {"head"})
        for name, t in select(tensors, optimised).items():
            noise = torch.randn(t.shape, generator=stream(9, self.number, client.id, name))
            tensors[name] = t + 0.3 * noise
        self.kept[client.id] = select(tensors, stays(self.strategy))
        uploaded = self.strategy.upload(select(tensors, optimised), client, round)
        uploaded = {k: self.crossed(k, t) for k, t in uploaded.items()}
        return Update(client, uploaded, sent, weight, {})

    def step(
        self, participants: Sequence[int] = (0, 1, 2, 3), weights: Sequence[float] = ()
    ) -> None:
        """A round with these clients, weighted by their examples unless told otherwise."""
        self.number += 1
        chosen = [self.clients[i] for i in participants]
        shares = list(weights) or [float(c.examples) for c in chosen]
        total = sum(shares)
        self.updates = [
            self.train(c, share / total) for c, share in zip(chosen, shares, strict=True)
        ]
        self.aggregate(self.updates)

    def aggregate(self, updates: Sequence[Update]) -> None:
        changes = self.strategy.aggregate(self.state, updates, self.round())
        self.state = merge(self.state, changes)

    def effective(self, client: Client) -> dict[str, Tensor]:
        """W − W0 of every module on a client, for evaluation after this round."""
        round = Round(self.number, "evaluate", seed=3, wire=self.wire)
        return deltas(self.local(client, round), client.scale, self.base.shapes)

    def server(self) -> dict[str, Tensor]:
        """W − W0 of every module by the server's state alone."""
        return deltas(self.state, self.base.scale, self.base.shapes)

    def ended(self, u: Update) -> dict[str, Tensor]:
        """W − W0 that a client of this round ended with."""
        kept = self.kept.get(u.client.id, {})
        return deltas({**u.sent, **kept, **u.tensors}, u.client.scale, self.base.shapes)

    def mean_of_products(self) -> dict[str, Tensor]:
        """Σ p_i (W_i − W0) over what this round's clients ended with: the aim of every method."""
        total: dict[str, Tensor] = {}
        for u in self.updates:
            for k, D in self.ended(u).items():
                total[k] = total.get(k, torch.zeros_like(D)) + u.weight * D
        return total


def deltas(
    tensors: Mapping[str, Tensor], scale: float, shapes: Mapping[str, tuple[int, int]]
) -> dict[str, Tensor]:
    """W − W0 of every module (m, n), multiplied out in float64: the independent truth."""
    out: dict[str, Tensor] = {}
    for module, (m, n) in shapes.items():
        t = {k[len(module) + 1 :]: v.double() for k, v in tensors.items() if k.startswith(module)}
        if "d" in t:
            U, V = tensors["vera.U"].double(), tensors["vera.V"].double()
            W = torch.diag(t["b"]) @ U[:m] @ torch.diag(t["d"]) @ V[:, :n]
        else:
            middle = t.get("R", torch.eye(t["A"].shape[0], dtype=torch.float64))
            W = scale * (t["B"] @ middle @ t["A"])
        if "P" in t:
            W = W + t["P"] @ t["Q"]
        out[module] = W + t["D"] if "D" in t else W
    return out


def worst(ours: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> float:
    """The largest relative error in the Frobenius norm over modules."""
    assert ours.keys() == truth.keys()
    return max(
        float((ours[k].double() - truth[k].double()).norm() / truth[k].double().norm().clamp(1e-30))
        for k in truth
    )
