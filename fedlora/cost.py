"""What a method costs, counted from a model's configuration alone.

The model is built without weights (on torch's meta device), and the method's own hooks are run on
tensors that have shapes and no values (see `fedlora.rehearsal`): what is counted is what runs.

Shapes: an adapted layer has m outputs and n inputs; rank r; K clients in a round.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fedlora import guard, tasks
from fedlora.adapters import recipe, targets
from fedlora.config import Config, Model
from fedlora.errors import UserError
from fedlora.pretrained import Pretrained
from fedlora.rehearsal import Counted, Rehearsal
from fedlora.strategy import Client, Round, Scaling, Strategy
from fedlora.streams import stream
from fedlora.tensors import Tensors, module_of, part_of


@dataclass(frozen=True)
class Cost:
    """Parameters of one client, and bytes of tensors per client and round (a mean over clients
    where their ranks differ)."""

    parameters: dict[str, int]  # in the global adapter by part; the head's among them
    trained_parameters: int  # that a client optimises, head included
    bytes_up: int  # a round's upload
    bytes_down_first: int  # the first download
    bytes_down: int  # a later one, by a client that took part in the round before
    state: int  # bytes of the first state on the server, memory included
    growth: int  # bytes by which it grows in the first round
    shared: bool  # whether all clients are sent the same
    notes: tuple[str, ...] = ()  # which hooks want values, and what was counted in their place


def cost(config: Config, strategy: Strategy, model: PreTrainedModel | None = None) -> Cost:
    """The cost of a method on a model.

    K is `run.clients_per_round`, a fraction of `data.clients`.

    Args:
        model: by default the `skeleton` of the configuration's, with two labels.

    Raises:
        UserError: the model's configuration cannot be found, or nothing in it can be adapted.
        MethodError: a hook is wrong.
    """
    rehearsal, clients, base = _rehearsed(config, strategy, model)
    found = rehearsal.played(clients, *(_round(config, number) for number in (1, 2)))

    def sent(kind: str) -> int:
        tensors = [getattr(one, kind) for one in found]
        return _mean([_bytes(t, config.run.wire_dtype, strategy.trained, base) for t in tensors])

    return Cost(
        _by_part(base),
        _trained(found, base),
        sent("up"),
        sent("first"),
        sent("later"),
        before := _bytes(rehearsal.states[0], torch.float32, set(), base),
        _bytes(rehearsal.states[1], torch.float32, set(), base) - before,
        all(
            one.first[k] is t for one in found for k, t in found[0].first.items() if k in one.first
        ),
        tuple(rehearsal.notes.values()),
    )


def trained_parameters(config: Config, strategy: Strategy) -> int:
    """What a client optimises, head included (a mean over clients where ranks differ): of the
    method's hooks only those that come before training are called. Raises as `cost` does."""
    rehearsal, clients, base = _rehearsed(config, strategy, None)
    return _trained(rehearsal.started(clients, _round(config, 1))[1], base)


def _rehearsed(
    config: Config, strategy: Strategy, model: PreTrainedModel | None
) -> tuple[Rehearsal, list[Client], "_Blank"]:
    base = _Blank(config, model or skeleton(config.model), alike=_built_in(strategy))
    parts = recipe.parts(config.adapter) | ({"head"} if config.adapter.head == "trained" else set())
    clients = _clients(config, strategy, base.scaling)
    return Rehearsal(strategy, base, parts - config.train.freezes), clients, base


def _built_in(strategy: Strategy) -> bool:
    """Whether it is known to do the same with every layer of a shape."""
    return type(strategy).__module__.startswith("strategies.")


def _round(config: Config, number: int) -> Round:
    return Round(number, "train", config.run.seed, config.run.wire_dtype)


def _trained(found: Sequence[Counted], base: "_Blank") -> int:
    return _mean([sum(_by_name(one.trained, base).values()) for one in found])


class _Blank:
    """A base (see `fedlora.strategy.Base`) whose tensors have no values.

    Args:
        alike: whether one layer stands for all of its shape, which is then counted so many `times`.
    """

    learning_rate = 1.0

    def __init__(self, config: Config, model: PreTrainedModel, alike: bool) -> None:
        assert config.adapter.kind is not None, "the method's kind is resolved before this"
        self.kind, self._adapter = config.adapter.kind, config.adapter
        self.scaling = recipe.scaling(config.adapter)
        self.rank = self.scaling.rank
        self.scale = self.scaling.at(self.rank)
        self.shapes: Mapping[str, tuple[int, int]] = targets.targets(model, config.adapter)
        self.times = Counter[str]()
        if alike:
            first = {shape: name for name, shape in reversed(self.shapes.items())}
            self.times.update(first[shape] for shape in self.shapes.values())
            self.shapes = {name: self.shapes[name] for name in first.values()}
        self._head = {
            f"head.{child}.{name}": _empty(*parameter.shape)
            for child in targets.head(model)
            for name, parameter in model.get_submodule(child).named_parameters()
        }

    def initial(self) -> Tensors:
        r = self.rank
        tensors: Tensors = {}
        for k, (m, n) in self.shapes.items():
            if self.kind == "vera":
                tensors |= {f"{k}.d": _empty(r), f"{k}.b": _empty(m)}
            else:
                tensors |= {f"{k}.A": _empty(r, n), f"{k}.B": _empty(m, r)}
            if self.kind == "lora-sb":
                tensors[f"{k}.R"] = _empty(r, r)
            if self._adapter.dora:
                tensors[f"{k}.M"] = _empty(m)
            if self._adapter.takes_out:
                tensors |= {f"{k}.P": _empty(m, r), f"{k}.Q": _empty(r, n)}
        if self.kind == "vera":
            m, n = (max(sizes) for sizes in zip(*self.shapes.values(), strict=True))
            tensors |= {"vera.U": _empty(m, r), "vera.V": _empty(r, n)}
        return tensors | self._head

    def weight(self, module: str) -> Tensor:
        return _empty(*self.shapes[module])

    def gradient(self, module: str, over: Literal["server", "clients", "sketch"]) -> Tensor:
        return _empty(*self.shapes[module])

    def generator(self, name: str) -> torch.Generator:
        return stream(0, name)


def skeleton(settings: Model, labels: int = 2) -> PreTrainedModel:
    """The model without weights; a classifier of so many labels."""
    described = Pretrained(settings).config()
    if settings.task == "classification":
        described.num_labels = labels
    try:
        with torch.device("meta"):
            return tasks.load(settings.task).architecture.from_config(described)
    except ValueError as e:
        reason = str(e).partition("\n")[0]
        raise UserError(
            f"the model {settings.name!r} cannot be made for model.task = {settings.task} "
            f"({reason}): set model.name to a text model of the hub, or to a folder with its "
            "config.json"
        ) from None


def _clients(config: Config, strategy: Strategy, scaling: Scaling) -> list[Client]:
    n, start = config.run.clients_per_round, Round(0, seed=config.run.seed)
    count = n if isinstance(n, int) else max(1, math.floor(n * config.data.clients + 0.5))
    ids = [f"client-{i:02d}" for i in range(count)]
    ranks = [guard.rank(strategy, scaling.rank, i, id, start) for i, id in enumerate(ids)]
    scales = [guard.scale(strategy, scaling, k) for k in ranks]
    return [Client(*one) for one in zip(ids, ranks, scales, strict=True)]


def _bytes(tensors: Tensors, wire: torch.dtype, trained: set[str], base: _Blank) -> int:
    """Trained parts cross in the wire's format, all others in fp32."""
    return sum(
        count * (wire if part_of(k) in trained else torch.float32).itemsize
        for k, count in _by_name(tensors, base).items()
    )


def _by_part(base: _Blank) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name, count in _by_name(base.initial(), base).items():
        counts[part_of(name)] = counts.get(part_of(name), 0) + count
    return counts


def _by_name(tensors: Tensors, base: _Blank) -> dict[str, int]:
    """Numbers of each tensor and of those that it stands for."""
    return {k: t.numel() * max(1, base.times[module_of(k)]) for k, t in tensors.items()}


def _mean(counts: list[int]) -> int:
    return round(sum(counts) / len(counts))


def _empty(*shape: int) -> Tensor:
    return torch.empty(*shape, device="meta")
