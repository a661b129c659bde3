"""A server's whole rounds without a model: real messages to clients that answer at once.

The coordinator is a run's own, with its views, exchange, screening, inbox and checkpoints. What it
serves has a large model's shapes and none of its weights; a client's "training" is noise. Orders
are cut into pieces as for a pipe, counted, and dropped, as a superlink takes them away; an answer
is made when the server asks for one, and they come in no order, as those of a federation do.

Shapes: an adapted layer has m outputs and n inputs, rank r; a client's own rank is k.
"""

from collections.abc import Iterable, Mapping
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast
from zlib import crc32

import torch
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from torch import Tensor

from clients.frames import cut
from fedlora import guard, profile
from fedlora.config import Config
from fedlora.progress import Observer
from fedlora.runs import RunDir
from fedlora.strategy import Round, Scaling, Strategy
from fedlora.streams import stream
from fedlora.tensors import Tensors, part_of
from fedlora.wire import Parcel, encode, pack
from server.loop import Coordinator
from server.records import round_row
from server.roster import Member
from server.rounds import Traffic
from server.score import Rated

Shapes = Mapping[str, tuple[int, int]]  # module -> (m, n)
PARTS = {"lora": {"A", "B"}, "lora-sb": {"A", "B", "R"}}
EXAMPLES = 100
OFFSETS = 1 << 20  # places in the noise at which a client's may begin


class Model(NamedTuple):
    """A Llama: its layers, width, width within its MLP, and that of keys and values."""

    layers: int
    width: int
    inner: int
    kv: int

    def shapes(self) -> Shapes:
        """(m, n) of the seven linears of each layer."""
        d, f, k = self.width, self.inner, self.kv
        attention = {"q_proj": (d, d), "k_proj": (k, d), "v_proj": (k, d), "o_proj": (d, d)}
        mlp = {"gate_proj": (f, d), "up_proj": (f, d), "down_proj": (d, f)}
        return {
            f"model.layers.{i}.{part}.{name}": shape
            for i in range(self.layers)
            for part, linears in (("self_attn", attention), ("mlp", mlp))
            for name, shape in linears.items()
        }


MODELS = {
    "tiny": Model(2, 64, 96, 32),
    "Llama-3.2-1B": Model(16, 2048, 8192, 512),
    "Llama-3-8B": Model(32, 4096, 14336, 1024),
}


class StandIns(Grid):
    """Clients 1..K. `sent` counts the bytes of orders, `disk` is the most that the run's folder was
    seen to hold."""

    closed = waits = True

    def __init__(self, config: Config, strategy: Strategy, shapes: Shapes, folder: Path) -> None:
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
        self._config, self._strategy, self._shapes = config, strategy, shapes
        self._folder, self._numbers = folder, count(1)
        self._asked: list[tuple[Message, Mapping[str, Any]]] = []
        most = config.adapter.rank * max(max(shape) for shape in shapes.values())
        self._noise = 0.02 * torch.randn(most + OFFSETS, generator=stream(0, "stand-ins"))
        self.sent, self.disk = 0, 0

    def set_run(self, run: Run) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Run:
        return Run.create_empty(1)

    def create_message(self, *_: Any, **__: Any) -> Message:
        raise NotImplementedError

    def send_and_receive(self, *_: Any, **__: Any) -> Iterable[Message]:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return range(1, self._config.data.clients + 1)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            with profile.span("encode"):
                self.sent += sum(len(piece) for piece in cut(None, [message]))
            ids.append(f"message-{next(self._numbers)}")
            message.metadata.__dict__["_message_id"] = ids[-1]
            facts, message.content = dict(message.content["facts"]), RecordDict()
            self._asked.append((message, facts))
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """One reply, of whoever is next in an order of chance."""
        files = [path.stat().st_size for path in self._folder.rglob("*") if path.is_file()]
        self.disk = max(self.disk, sum(files))
        if not self._asked:
            return []
        draw = stream(0, "next", len(self._asked), self._asked[0][1]["tag"])
        chosen = int(torch.randint(len(self._asked), (), generator=draw))
        message, facts = self._asked.pop(chosen)
        return [Message(pack(self._answered(facts)), reply_to=message)]

    def _answered(self, order: Mapping[str, Any]) -> Parcel:
        facts = {"status": "ok", **{k: order[k] for k in ("experiment", "round")}}
        if order["purpose"] == "evaluate":
            return Parcel(facts, {}, {"score": 0.5, "loss": 1.0, "rows": 1.0})
        run, tensors = self._config.run, {}
        round = Round(order["round"], "train", run.seed, run.wire_dtype)
        parts = guard.sends(self._strategy, round, PARTS[self._strategy.adapter])
        for name, shape in shaped(self._shapes, parts, order["rank"]).items():
            at = crc32(f"{order['client']} {order['round']} {name}".encode()) % OFFSETS
            tensors[name] = self._noise[at : at + shape[0] * shape[1]].view(shape)
        numbers = encode(tensors, run.wire_dtype, self._strategy.trained)
        return Parcel(facts, numbers, {"loss": 1.0, "seconds": 1.0})


class Served(Coordinator):
    """A coordinator of stand-ins, all of whom have joined; it scores nothing."""

    def __init__(
        self,
        grid: StandIns,
        config: Config,
        strategy: Strategy,
        shapes: Shapes,
        run: RunDir,
        observer: Observer,
    ) -> None:
        self._scaling = Scaling(config.adapter.rank, config.adapter.alpha or config.adapter.rank)
        adapter = SimpleNamespace(
            parts=PARTS[strategy.adapter], shapes=shapes, scaling=self._scaling
        )
        resident = SimpleNamespace(
            config=config,
            strategy=strategy,
            adapter=adapter,
            federation=SimpleNamespace(test=()),  # so that there is nothing to score
            load=lambda view, scale: None,
        )
        super().__init__(grid, cast(Any, resident), run, observer, lambda *_: Rated())
        self.greeter = cast(Any, SimpleNamespace(greet=lambda: None))
        self._shapes = shapes

    def _begin(self) -> None:
        """Everybody joins; the first state is noise of the right shapes."""
        full = self._scaling.rank
        for index, node in enumerate(self.grid.get_node_ids()):
            client = f"client-{node:03d}"
            rank = guard.rank(self.strategy, full, index, client, Round(0))
            scale = guard.scale(self.strategy, self._scaling, rank)
            self.roster.members[client] = Member(index, EXAMPLES + index, rank, scale)
            self.roster.nodes[client] = node
        self.roster.founders = len(self.roster.members)
        shapes = shaped(self._shapes, PARTS[self.strategy.adapter], full)
        self.state: Tensors = {name: _drawn(name, shape) for name, shape in shapes.items()}
        with self.run.aside(0) as aside:
            self._commit(0, [round_row(0, Traffic(), 0.0)], aside)


def shaped(shapes: Shapes, parts: set[str], k: int) -> dict[str, tuple[int, int]]:
    """A (k, n), B (m, k) and R (k, k) of every module, by name."""
    own: dict[str, tuple[int, int]] = {}
    for module, (m, n) in shapes.items():
        own |= {f"{module}.A": (k, n), f"{module}.B": (m, k), f"{module}.R": (k, k)}
    return {name: shape for name, shape in own.items() if part_of(name) in parts}


def _drawn(name: str, shape: tuple[int, int]) -> Tensor:
    return 0.02 * torch.randn(shape, generator=stream(0, name))
