"""Real tokens a second of training passes over the same rows: plain ones, one client after another,
and clients stacked.

A piece of work is some of the pooled rows, and every contender goes through all of them once: the
plain loop in batches of its own, the others as K clients with equal shares of them and batches of b
each. Padding is work that counts for nobody.

Shapes: K clients, b rows a client and step.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import torch

from fedlora import stacking, training
from fedlora.config import Config, Train
from fedlora.stacking import Member
from fedlora.streams import forked, stream
from fedlora.tasks.encoded import Encoded
from simulations.benchmarks.contenders import Workload
from simulations.benchmarks.flowertune.model import fit, get_model
from simulations.benchmarks.timing import Spread, alternated, clock, spread

LIMIT = 128  # rows of a batch: with more, no token gets cheaper
WARM_UP = 1  # pieces that are not counted
PLAIN, POOLED = "plain PEFT loop", "fedlora, pooled rows"
IN_TURN, STACKED = "fedlora, one after another", "fedlora, stacked"

Pass = Callable[[list[int]], int]  # trains on these rows, and says how many tokens they have


class Setting(NamedTuple):
    """K clients with batches of b each."""

    clients: int
    batch: int

    @property
    def rows(self) -> int:
        """Of all clients, a step."""
        return self.clients * self.batch


@dataclass(frozen=True)
class Result:
    """A contender's real tokens a second, and piece by piece its share of what a batch of LIMIT
    rows gives."""

    device: str
    contender: str
    batch: int  # rows a step, of one client
    clients: int  # 0: it knows none
    speed: Spread
    share: Spread  # of the plain loop's in batches of LIMIT
    own_share: Spread  # of fedlora's own loop in batches of LIMIT, which pads less


class Passes:
    """The contenders, each with one model that it keeps."""

    def __init__(self, config: Config, device: str) -> None:
        self.load = Workload(config, device)
        self.adapter = self.load.adapter()
        self.start = self.adapter.initial()
        with forked(config.run.seed, "benchmark", "plain"):
            self.model = get_model(config.adapter.rank).to(device)

    def pieces(self, rows: int, count: int) -> list[list[int]]:
        """Rows of the pool, other ones in each piece."""
        draw = stream(self.load.settings.run.seed, "benchmark", "pieces")
        order: list[int] = torch.randperm(len(self.load.encoded), generator=draw).tolist()
        return [order[i * rows : (i + 1) * rows] for i in range(count)]

    def plain(self, model: Any, batch: int, rows: list[int]) -> int:
        """A loop with Transformers and PEFT as anybody writes it, batches padded to the longest."""
        with forked(self.load.settings.run.seed, "benchmark", "dropout"):
            fit(model, self._batches(rows, batch), self.load.settings.train.lr)
        return self.tokens(rows)

    def in_turn(self, setting: Setting, rows: list[int]) -> int:
        """One client after another by `fedlora.training`, each from the start; a single one is
        fedlora's own plain loop, in pieces of rows of like length."""
        settings, scale = self._settings(setting.batch), self._scale
        for k, share in enumerate(_shares(rows, setting.clients)):
            self.adapter.load(self.start, scale)
            encoded = self.load.encoded.select(share)
            training.train(
                self.load.task, self.adapter, self.adapter.parts, encoded, settings, _seed(k)
            )
            self.adapter.read(self.adapter.parts)
        return self.tokens(rows)

    def stacked(self, setting: Setting, rows: list[int]) -> int:
        """All clients in the same passes by `fedlora.stacking`."""
        members = [
            Member(self.start, self._scale, self.load.encoded.select(share), _seed(k))
            for k, share in enumerate(_shares(rows, setting.clients))
        ]
        settings, parts = self._settings(setting.batch), self.adapter.parts
        stacking.train(self.load.task, self.adapter, members, parts, settings)
        return self.tokens(rows)

    @property
    def _scale(self) -> float:
        return self.adapter.scaling.at(self.adapter.scaling.rank)

    def _settings(self, batch: int) -> Train:
        """One pass over a client's rows."""
        return self.load.settings.train.model_copy(
            update={"batch_size": batch, "steps": None, "epochs": 1}
        )

    def tokens(self, rows: list[int]) -> int:
        """Real ones."""
        return sum(self.load.encoded.length(row) for row in rows)

    def _batches(self, rows: list[int], batch: int) -> Iterator[dict[str, torch.Tensor]]:
        tokenizer, encoded = self.load.task.tokenizer, self.load.encoded
        for i in range(0, len(rows), batch):
            chosen = rows[i : i + batch]
            texts = [_row(encoded, row) for row in chosen]
            padded = tokenizer.pad(texts, return_tensors="pt")
            yield {**padded, "labels": encoded.labels[encoded.rows[chosen]]}


def measure(
    config: Config, device: str, settings: Sequence[Setting], rows: int, repeats: int
) -> list[Result]:
    """Every contender on the same pieces, by turns.

    Args:
        rows: of a piece; every setting's rows a step divide it.
        repeats: pieces that count.
    """
    passes = Passes(config, device)
    plain = sorted({s.batch for s in settings} | {s.rows for s in settings} | {LIMIT})
    named: dict[tuple[str, int, int], Pass] = {
        (PLAIN, batch, 0): partial(passes.plain, passes.model, batch) for batch in plain
    }
    named[POOLED, LIMIT, 1] = partial(passes.in_turn, Setting(1, LIMIT))
    for s in settings:
        named[IN_TURN, s.batch, s.clients] = partial(passes.in_turn, s)
        named[STACKED, s.batch, s.clients] = partial(passes.stacked, s)
    pieces = passes.pieces(rows, WARM_UP + repeats)
    taken = alternated(list(named.values()), pieces, WARM_UP, clock(device))
    seconds = dict(zip(named, taken, strict=True))
    limit, own = seconds[PLAIN, LIMIT, 0], seconds[POOLED, LIMIT, 1]
    return [
        Result(
            device, *key, spread([1 / t for t in times]), *(_share(x, times) for x in (limit, own))
        )
        for key, times in seconds.items()
    ]


@dataclass(frozen=True)
class Compiled:
    """What torch.compile does to the plain loop's step at a batch size."""

    device: str
    batch: int
    compiling: float  # seconds of the first piece, over a later one's
    eager: float  # seconds of a piece
    compiled: float  # seconds of a piece

    @property
    def pays_after(self) -> float:
        """Seconds of eager training after which compiling has paid; infinite where never."""
        saved = self.eager - self.compiled
        return self.compiling * self.eager / saved if saved > 0 else float("inf")


def compare_compiled(
    config: Config, device: str, sizes: Sequence[int], rows: int, repeats: int
) -> list[Compiled]:
    """The plain loop's step eager and compiled for shapes of any size."""
    passes, found = Passes(config, device), []
    for batch in sizes:
        torch.compiler.reset()
        made = torch.compile(passes.model, dynamic=True)
        first, *pieces = passes.pieces(rows, 2 + repeats)
        start = perf_counter()
        passes.plain(made, batch, first)
        begun = perf_counter() - start
        both = [partial(passes.plain, model, batch) for model in (passes.model, made)]
        times = alternated(both, pieces, WARM_UP, clock(device))
        tokens = median([passes.tokens(piece) for piece in pieces])
        eager, compiled = (tokens * median(t) for t in times)
        found.append(Compiled(device, batch, max(0.0, begun - compiled), eager, compiled))
    return found


def _share(limit: Sequence[float], times: Sequence[float]) -> Spread:
    """Of the limit's speed, piece by piece; both are seconds a token."""
    return spread([most / t for most, t in zip(limit, times, strict=True)])


def _shares(rows: list[int], clients: int) -> list[list[int]]:
    """Equal shares of the rows."""
    each = len(rows) // clients
    return [rows[k * each : (k + 1) * each] for k in range(clients)]


def _seed(client: int) -> tuple[Any, ...]:
    return (0, "benchmark", client)


def _row(encoded: Encoded, i: int) -> dict[str, list[int]]:
    """A tokenised row as tokenizers take it."""
    start = int(encoded.starts[encoded.rows[i]])
    span = slice(start, start + encoded.length(i))
    return {name: tokens[span].tolist() for name, tokens in encoded.inputs.items()}
