"""Ways to train a language model on one device, each on the same rows.

Shapes: K clients, b rows a client and step.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from fedlora import config, stacking, training
from fedlora.adapters import Adapter
from fedlora.device import settled
from fedlora.privacy import entropy
from fedlora.privacy import training as private
from fedlora.privacy.accounting import Mechanism
from fedlora.stacking import Member
from fedlora.streams import forked
from fedlora.tasks.instruction import Instruction
from fedlora.tensors import Tensors
from simulations.benchmarks import llama
from simulations.benchmarks.flowertune.model import fit
from simulations.benchmarks.timing import Spread, alternated, clock, spread

PLAIN, ALONE, STACKED, PRIVATE = "PEFT alone", "one client", "stacked", "one private client"
SETTINGS = [(4, 4), (16, 4)]  # (K, b) of stacked clients
BATCH = 16  # of those alone
RANK = 16
WARM_UP = 1  # pieces that are not counted
MB = 1e6

Work = Callable[[list[int]], int]  # trains on these rows, and says how many tokens they have


@dataclass(frozen=True)
class Measured:
    """A way to train: real tokens a second, and the most memory above what was held."""

    name: str
    clients: int  # 0: it knows none
    batch: int
    tokens: Spread
    megabytes: float | None  # None where the device does not tell


class Bench:
    """A model with an adapter on a device, and rows for it."""

    def __init__(
        self, folder: Path, shape: llama.Shape, device: str, rows: int, **model: Any
    ) -> None:
        given = config.Config(
            model=config.Model(name=str(folder), task="instruction", **{"dtype": "bf16", **model}),
            adapter=config.Adapter(kind="lora", rank=RANK, target_modules="all-linear"),
            data=config.Data(max_length=shape.most),
            train=config.Train(batch_size=BATCH, steps=None),
            privacy=config.Privacy(noise_multiplier=1.0),
        )
        self.config, self.device = settled(given, device), device
        self.task: Any = Instruction(self.config)
        self.encoded = self.task.encode(llama.rows(shape, rows))
        self.adapter = self._adapter()
        self.start = self.adapter.initial()
        self.scale = self.adapter.scaling.at(RANK)
        self.parameters = sum(
            p.numel() for p in self.adapter.model.parameters() if not p.requires_grad
        )

    def measured(self, rows: int, repeats: int) -> list[Measured]:
        """Every way on the same pieces of so many rows, by turns; PEFT alone comes first."""
        plain = self._peft()
        ways: dict[tuple[str, int, int], Work] = {
            (PLAIN, 0, BATCH): partial(self.plain, plain),
            (ALONE, 1, BATCH): self.alone,
            **{(STACKED, k, b): partial(self.stacked, k, b) for k, b in SETTINGS},
            (PRIVATE, 1, BATCH): self.private,
        }
        work = [list(range(i * rows, (i + 1) * rows)) for i in range(WARM_UP + repeats)]
        taken = alternated(list(ways.values()), work, WARM_UP, clock(self.device))
        return [
            Measured(*key, spread([1 / t for t in times]), self._memory(ways[key], work[-1]))
            for key, times in zip(ways, taken, strict=True)
        ]

    def sameness(self, rows: int) -> Iterator[tuple[str, str]]:
        """What is done twice, and stacked clients beside others."""
        work = list(range(rows))
        clients, batch = SETTINGS[0]
        twice = [self._trained(work) for _ in range(2)]
        yield "one client", _told(*twice)
        stacks = [self._stacked(clients, batch, work) for _ in range(2)]
        yield f"{clients} stacked clients", _told(*stacks)
        shares = self._shares(work, clients)
        apart = [self._trained(share, batch, k)[0] for k, share in enumerate(shares)]
        found = max(_apart(*pair) for pair in zip(stacks[0], apart, strict=True))
        yield f"{clients} stacked clients against one after another", f"{found:.1e}"

    def passes(self, sizes: Sequence[int], repeats: int) -> dict[int, float]:
        """{padded tokens: seconds} of one pass forward and backward, the least of the repeats; the
        first one does not count."""
        self.adapter.load(self.start, self.scale)
        self.adapter.trainable(self.adapter.parts)
        now, took = clock(self.device), {}
        for rows in sizes:
            batch = self.task.batch(self.encoded, range(rows))
            seconds = []
            for _ in range(1 + repeats):
                start = now()
                self.task.losses(self.adapter.model, batch).sum().backward()
                seconds.append(now() - start)
            took[batch["input_ids"].numel()] = min(seconds[1:])
        return took

    def plain(self, model: Any, rows: list[int]) -> int:
        """A loop as anybody writes it."""
        with forked(0, "benchmark", "dropout"):
            fit(model, self._batches(rows), self.config.train.lr)
        return self.tokens(rows)

    def alone(self, rows: list[int]) -> int:
        """One client by `fedlora.training`."""
        self._trained(rows)
        return self.tokens(rows)

    def stacked(self, clients: int, batch: int, rows: list[int]) -> int:
        """K clients with equal shares of the rows by `fedlora.stacking`."""
        self._stacked(clients, batch, rows)
        return self.tokens(rows)

    def private(self, rows: list[int]) -> int:
        """One client by `fedlora.privacy.training`, in as many steps as the others take. Which rows
        a step draws is chance; on average they are as many."""
        self.adapter.load(self.start, self.scale)
        mechanism = Mechanism(1.0, BATCH / len(rows), 1e-5)
        private.train(
            self.task,
            self.adapter,
            self.adapter.parts,
            self.encoded.select(rows),
            self.config.train,
            self.config.privacy,
            mechanism,
            entropy.insecure(0, "benchmark"),
        )
        return self.tokens(rows)

    def tokens(self, rows: Sequence[int]) -> int:
        return sum(self.encoded.length(row) for row in rows)

    def _trained(self, rows: list[int], batch: int = BATCH, client: int = 0) -> list[Tensors]:
        self.adapter.load(self.start, self.scale)
        settings = self.config.train.model_copy(update={"batch_size": batch})
        chosen, parts = self.encoded.select(rows), self.adapter.parts
        training.train(self.task, self.adapter, parts, chosen, settings, _seed(client))
        return [self.adapter.read(parts)]

    def _stacked(self, clients: int, batch: int, rows: list[int]) -> list[Tensors]:
        members = [
            Member(self.start, self.scale, self.encoded.select(share), _seed(k))
            for k, share in enumerate(self._shares(rows, clients))
        ]
        settings = self.config.train.model_copy(update={"batch_size": batch})
        found = stacking.train(self.task, self.adapter, members, self.adapter.parts, settings)
        return [tensors for tensors, _ in found]

    def _shares(self, rows: list[int], clients: int) -> list[list[int]]:
        return [rows[k::clients] for k in range(clients)]

    def _adapter(self) -> Adapter:
        model: Any = self.task.model(0)
        placed = model if self.config.model.quantize else model.to(self.device)
        return Adapter(placed, self.config.adapter, 0)

    def _peft(self) -> Any:
        """A model of its own with PEFT's adapter, as anybody makes it."""
        model: Any = self.task.model(0)
        placed = model if self.config.model.quantize else model.to(self.device)
        told = LoraConfig(
            r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        with forked(0, "benchmark", "plain"):
            return get_peft_model(placed, told)

    def _batches(self, rows: list[int]) -> Iterator[dict[str, Tensor]]:
        """Rows in batches in their order, padded to the longest."""
        for i in range(0, len(rows), BATCH):
            yield self.task.batch(self.encoded, rows[i : i + BATCH])

    def _memory(self, way: Work, rows: list[int]) -> float | None:
        if not self.device.startswith("cuda"):
            return None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        way(rows)
        return (torch.cuda.max_memory_allocated() - held) / MB


def _seed(client: int) -> tuple[Any, ...]:
    return (0, "benchmark", client)


def _told(one: Sequence[Tensors], other: Sequence[Tensors]) -> str:
    same = all(torch.equal(a[k], b[k]) for a, b in zip(one, other, strict=True) for k in a)
    if same:
        return "the same bits"
    apart = max(_apart(a, b) for a, b in zip(one, other, strict=True))
    return f"differs by {apart:.1e}"


def _apart(one: Tensors, other: Tensors) -> float:
    """The largest difference of a tensor over its largest value."""
    return max(
        float((one[k] - other[k]).abs().max() / one[k].abs().max().clamp(min=1e-12)) for k in one
    )
