"""The contract of a federated LoRA method.

A method says which parts a client trains, which of them it uploads, and how the server makes one
state of many uploads. It knows tensors and nothing else: no Flower, no models, no files.

Symbols: K clients of a round, p_i the weight of client i (they sum to one), s_i its scale,
A (r, n), B (m, r); the other parts are in `fedlora.tensors`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from fedlora.mean import Mean
from fedlora.streams import stream
from fedlora.tensors import Tensors, is_memory, select

Purpose = Literal["train", "evaluate"]


@dataclass(frozen=True)
class Client:
    """A data owner: `id` is stable across restarts, `scale` its s, `examples` its training rows."""

    id: str
    rank: int
    scale: float
    examples: int = 1


@dataclass(frozen=True)
class Round:
    """One round: `number` counts from 1 (0 is `begin`); `wire` is the number format that trained
    parts cross the wire in."""

    number: int
    purpose: Purpose = "train"
    seed: int = 0
    wire: torch.dtype = torch.float32

    def generator(self, client: Client | str, name: str) -> torch.Generator:
        """A seeded stream: the same draws for a round, client and name wherever it is asked."""
        id = client if isinstance(client, str) else client.id
        return stream(self.seed, "method", self.number, id, name)

    def assigned(self, tensor: Tensor) -> Tensor:
        """A trained part as clients will really hold it, after its trip in the wire's format."""
        return tensor.to(self.wire).to(tensor.dtype)


@dataclass(frozen=True)
class Update:
    """What one client sent: its uploaded tensors, what it had been `sent`, its weight p_i, and
    `metrics`, its training's "loss" and "seconds" (a run with privacy tells neither).

    The `tensors` may lie on disk, and each is read whenever it is asked for, as what was `sent` is
    made again: an `aggregate` that goes module by module has one module of all clients in memory.
    """

    client: Client
    tensors: Mapping[str, Tensor]
    sent: Mapping[str, Tensor]
    weight: float
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Scaling:
    """The adapter's scale at a rank: alpha / r, rsLoRA's alpha / sqrt(r) (arXiv:2312.03732)."""

    rank: int
    alpha: float
    rslora: bool = False

    def at(self, rank: int) -> float:
        return self.alpha / (rank**0.5 if self.rslora else rank)


class Base(Protocol):
    """The frozen model as `begin` sees it: one layer at a time, never the whole. Matrices are on
    the device that has the model, where they are best worked with."""

    scale: float  # the adapter's s at full rank
    rank: int  # the adapter's r
    learning_rate: float  # that of the first optimizer step: the run's, over its warm-up steps
    shapes: Mapping[str, tuple[int, int]]  # module path -> (m, n)

    def initial(self) -> Tensors:
        """Every part as adapter.init says; with pissa and olora the residual P, Q that takes B A
        out of W0 too."""
        ...

    def weight(self, module: str) -> Tensor:
        """W0 of a module, (m, n), fp32."""
        ...

    def gradient(self, module: str, over: Literal["server", "clients", "sketch"]) -> Tensor:
        """The loss's gradient with respect to W0, (m, n), over the server's public rows, summed
        over clients, or rebuilt from clients' two-stage sketches."""
        ...

    def generator(self, name: str) -> torch.Generator:
        """A seeded stream for an initialiser's draws."""
        ...


class Strategy(BaseModel):
    """A federated LoRA method. Leave everything alone and it is federated averaging (FedIT).

    Hooks make new tensors and write into none that they were given; see `fedlora.guard`.

    Settings are typed fields, filled from the configuration's `[strategy]` table::

        class Damped(Strategy):
            keep: float = 0.5

            def aggregate(self, state, updates, round):
                mean = super().aggregate(state, updates, round)
                return {k: self.keep * state[k] + (1 - self.keep) * t for k, t in mean.items()}
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    adapter: ClassVar[str] = "lora"  # the kind it uses unless adapter.kind says otherwise
    trained: ClassVar[set[str]] = {"A", "B", "M", "d", "b", "head"}  # what a client optimises
    shared: ClassVar[set[str]] = {"A", "B", "M", "d", "b", "head"}  # what it sends; others stay
    mixed_ranks: ClassVar[bool] = False  # whether clients may hold different ranks
    defaults: ClassVar[dict[str, Any]] = {}  # configuration that this method wants, by dotted key
    # settings that its equations do not admit -> why: "lora-fa", "lora-plus" (train.optimizer),
    # "init" (an adapter.init with which B is not zero at the start), "dora" (adapter.dora)
    refuses: ClassVar[dict[str, str]] = {}
    paper: ClassVar[str] = ""

    # the server

    def begin(self, base: Base) -> Tensors:
        """The first state: every part as PEFT initialises it."""
        return base.initial()

    def broadcast(self, state: Tensors, client: Client, round: Round) -> Tensors:
        """What this client's adapter is to be: all of the state, memory aside. The core sends what
        the client lacks of it; parts that stay with the client travel at first contact only."""
        return {k: t for k, t in state.items() if not is_memory(k)}

    def place(self, update: Update, state: Tensors, round: Round) -> Mapping[str, Tensor]:
        """An update in the shapes of the state. It may not depend on the weight, which is known
        only when the round's last update has come, nor on other updates: under central privacy
        what it changes counts with the norm C at most, one client at a time."""
        return update.tensors

    def aggregate(self, state: Tensors, updates: Sequence[Update], round: Round) -> Tensors:
        """What changes in the state; None removes memory or a residual. Default:
        sum_i p_i place(update_i)."""
        mean = Mean()
        for update in updates:
            mean.add(self.place(update, state, round), update.weight)
        return mean.result()

    # the client

    def trains(self, round: Round) -> set[str]:
        """The parts optimised in this round."""
        return self.trained

    def upload(self, tensors: Tensors, client: Client, round: Round) -> Tensors:
        """What a client sends of these, the parts that it shares and trained in this round: each
        whole, or not at all. Parts that stay with it are not among them."""
        return select(tensors, self.shared & self.trains(round))

    # ranks

    def rank(self, full: int, index: int, client: str, round: Round) -> int:
        """The rank of a client whose node sets none; `index` counts clients as they joined."""
        return full

    def scale(self, scaling: Scaling, rank: int) -> float:
        """The scale s_i of a client that holds this rank."""
        return scaling.at(rank)


def stays(strategy: Strategy | type[Strategy]) -> set[str]:
    """The parts that never leave a client."""
    return strategy.trained - strategy.shared


def is_linear(strategy: Strategy) -> bool:
    """Whether the method is a weighted mean of placed updates: it left `aggregate` alone."""
    return type(strategy).aggregate is Strategy.aggregate


def merge(state: Tensors, changes: Mapping[str, Tensor | None]) -> Tensors:
    """The state after `aggregate`: changed entries replaced, None removed; memory may be added."""
    return {k: t for k, t in {**state, **changes}.items() if t is not None}
