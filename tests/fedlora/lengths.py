"""Rows of tokens of many lengths, whose label is their sum modulo three, and a task for them.

`Encoded` is what a task's rows are asked to be, written as lists.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedlora import config
from fedlora.adapters import Adapter
from fedlora.stacking import Member
from fedlora.streams import stream
from fedlora.tensors import Tensors, part_of
from tests.fedlora.adapters import tiny


class Encoded:
    """Rows of token ids."""

    def __init__(self, rows: list[list[int]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def length(self, i: int) -> int:
        return len(self.rows[i])

    @staticmethod
    def joined(parts: "list[Encoded]") -> "Encoded":
        return Encoded([row for part in parts for row in part.rows])


def rows(count: int, *path: object) -> Encoded:
    """So many rows of one to nineteen tokens; the same for the same path."""
    draw = stream(0, "lengths", *path)
    lengths = torch.randint(1, 20, (count,), generator=draw).tolist()
    return Encoded([torch.randint(1, 30, (n,), generator=draw).tolist() for n in lengths])


class Task:
    """As much of a task as training and scoring need; counts passes and their padded tokens."""

    def __init__(self) -> None:
        self.tokens: list[int] = []

    def batch(self, encoded: Encoded, indices: list[int]) -> dict[str, Tensor]:
        chosen = [encoded.rows[i] for i in indices]
        width = max(map(len, chosen))
        self.tokens.append(width * len(chosen))
        ids = torch.tensor([r + [0] * (width - len(r)) for r in chosen])
        return {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": ids.sum(1) % 3}

    def counts(self, encoded: Encoded, indices: list[int]) -> Tensor:
        return torch.ones(len(indices), dtype=torch.float64)

    def losses(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        inputs = {k: t for k, t in batch.items() if k != "labels"}
        return F.cross_entropy(model(**inputs).logits, batch["labels"], reduction="none")

    def outcomes(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        inputs = {k: t for k, t in batch.items() if k != "labels"}
        logits = model(**inputs).logits
        right = (logits.argmax(1) == batch["labels"]).float()
        return right, F.cross_entropy(logits, batch["labels"], reduction="none")


def adapter(architecture: str, kind: str, **fields: object) -> Adapter:
    """Of rank 4, without any dropout, the model's own included, unless it is asked for."""
    made = tiny.adapter(architecture, kind, **fields)
    for module in made.model.modules():
        if isinstance(module, nn.Dropout) and not fields.get("dropout"):
            module.p = 0.0
    return made


def doubled(made: Adapter) -> None:
    """All in float64, what is loaded later too."""
    load = made.load

    def load_double(*arguments: Any) -> None:
        load(*arguments)
        made.model.double()

    made.load = load_double  # type: ignore[method-assign]
    made.model.double()


def state(made: Adapter, client: int, rank: int = 4, residual: bool = False) -> Tensors:
    """A client's whole adapter at a rank, every part random; the residual is everybody's."""
    tensors = made.initial() | tiny.drawn(made, f"client {client}")
    for name, tensor in tensors.items():
        if made.kind == "lora" and part_of(name) == "A":
            tensors[name] = tensor[:rank]
        elif made.kind == "lora" and part_of(name) == "B":
            tensors[name] = tensor[:, :rank]
    return tensors | (tiny.residual(made) if residual else {})


def members(
    made: Adapter, sizes: list[int], ranks: list[int] | None = None, residual: bool = False
) -> list[Member]:
    """Clients with so many rows each, and these ranks, whose scale is 2 over its root."""
    return [
        Member(
            state(made, k, ranks[k] if ranks else 4, residual),
            1.0 if made.kind == "vera" else 2.0 / (ranks[k] if ranks else 4) ** 0.5,
            rows(size, k),
            (0, "train", f"client-{k}", 1),
        )
        for k, size in enumerate(sizes)
    ]


def train_settings(**fields: object) -> config.Train:
    return config.Train(**{"lr": 0.01, "batch_size": 4, "steps": 5, "clip": None, **fields})
