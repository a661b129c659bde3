"""Updates of a large adapter, those who average them, and the memory each takes.

Everybody averages the same values with the same weights, of replies in memory as Flower's transport
leaves them: fedlora's carry an array's raw bytes, Flower's own numpy's format. In memory's trials
each reply is read from a file when its turn comes, and Flower's all at once, as its strategy does.

Shapes: A (r, n) and B (m, r) of a layer with m outputs and n inputs.
"""

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity
from transformers import LlamaConfig, LlamaForCausalLM

from fedlora import wire
from fedlora.guard import Changes
from fedlora.strategy import Client, Round
from fedlora.streams import stream
from fedlora.tensors import Tensors
from server.inbox import Inbox
from server.screening import fault
from simulations.benchmarks import memory
from strategies.fedit import FedIT

LLAMA = LlamaConfig(  # 3.2, 3B
    hidden_size=3072,
    intermediate_size=8192,
    num_hidden_layers=28,
    num_attention_heads=24,
    num_key_value_heads=8,
    vocab_size=128256,
)
SMALL = {"layer.A": (2, 3), "layer.B": (4, 2)}
FILES = 4  # distinct updates in memory's trials, taken in turn

Shapes = dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Load:
    """Replies of clients, each with weight 1, 2, … in turn, as fedlora's and as Flower's own."""

    state: Tensors
    ours: list[RecordDict]
    flowers: list[Message]
    folder: Path


def shapes(rank: int, config: LlamaConfig = LLAMA) -> Shapes:
    """LoRA's A and B on every linear layer but the output's."""
    with torch.device("meta"):
        body = LlamaForCausalLM(config).model
    found: Shapes = {}
    for name, module in body.named_modules():
        if isinstance(module, torch.nn.Linear):
            found[f"{name}.A"] = (rank, module.in_features)
            found[f"{name}.B"] = (module.out_features, rank)
    return found


def draw(sizes: Shapes, number: int) -> Tensors:
    generator = stream(0, "update", number)
    return {k: torch.rand(shape, generator=generator) for k, shape in sizes.items()}


def load(sizes: Shapes, count: int, folder: Path) -> Load:
    """Updates drawn at random; an update is in memory twice, in either serialisation."""
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    state = {k: torch.zeros(shape) for k, shape in sizes.items()}
    ours, flowers = [], []
    for i in range(count):
        tensors = draw(sizes, i)
        ours.append(wire.pack(wire.Parcel(tensors=tensors)))
        flowers.append(_reply({k: t.numpy() for k, t in tensors.items()}, i))
    return Load(state, ours, flowers, folder)


def _reply(arrays: dict[str, np.ndarray], i: int) -> Message:
    content = RecordDict(
        {
            "arrays": ArrayRecord({k: Array(x) for k, x in arrays.items()}),
            "metrics": MetricRecord({"num-examples": i + 1}),
        }
    )
    return Message(content, 1, "train")


def fedlora(load: Load, rounds: int = 1, screened: bool = True) -> Changes:
    """Decoded, looked at and folded in as they arrive, the list of replies `rounds` times over."""
    inbox = open_inbox(load.state, rounds * len(load.ours), load.folder)
    for i in range(rounds * len(load.ours)):
        receive(inbox, i, load.ours[i % len(load.ours)], load.state, screened)
    return inbox.changes()


def open_inbox(state: Tensors, count: int, folder: Path) -> Inbox:
    turns = [str(i) for i in range(count)]
    return Inbox(FedIT(), state, Round(1), turns, folder, keep=False)


def receive(
    inbox: Inbox, i: int, content: RecordDict, state: Tensors, screened: bool = True
) -> None:
    """What the round loop does with a reply."""
    parcel = wire.unpack(content)
    if screened and (wrong := fault(parcel.tensors, state, None)):
        raise ValueError(wrong)
    inbox.accept(Client(str(i), 1, 1.0), parcel.tensors, state, i + 1, parcel.metrics)


def flower(load: Load) -> ArrayRecord:
    """Flower's own strategy over the list of replies."""
    arrays, _ = FedAvg().aggregate_train(1, load.flowers)
    assert arrays is not None
    return arrays


def plain_numpy(load: Load) -> dict[str, np.ndarray]:
    """The sum of p_i x_i as one writes it, over views of fedlora's bytes."""
    total = sum(range(1, len(load.ours) + 1))
    mean: dict[str, np.ndarray] = {}
    for i, content in enumerate(load.ours):
        for name, array in content.array_records["tensors"].items():
            x = np.frombuffer(array.data, np.float32).reshape(array.shape)
            if name in mean:
                mean[name] += (i + 1) / total * x
            else:
                mean[name] = (i + 1) / total * x
    return mean


def add(updates: Sequence[Tensors], sums: Tensors) -> None:
    """The yardstick: update read, sum read and written, nothing else."""
    for update in updates:
        for name, tensor in update.items():
            sums[name].add_(tensor)


def in_turn(count: int) -> list[int]:
    return list(range(count))


def swapped(count: int) -> list[int]:
    """Each second client before the one whose turn it is."""
    return [i ^ 1 for i in range(count)]


def peak(name: str, sizes: Shapes, order: Sequence[int], folder: Path) -> float | None:
    """The most memory that averaging takes, in updates, above the loaded process with the server's
    state; in a process of its own. Nothing where the system does not tell.

    Args:
        name: "fedlora" or "flower".
        order: clients as their replies come, an even number of them.
        folder: an empty one.
    """
    if not memory.STATUS.exists():
        return None
    write(folder / "large", sizes, FILES)
    write(folder / "small", SMALL, FILES)
    spawn = multiprocessing.get_context("spawn")
    with memory.environment(memory.GLIBC), ProcessPoolExecutor(1, mp_context=spawn) as pool:
        taken = pool.submit(_peak, name, sizes, order, folder).result()
    return taken / sum(4 * m * n for m, n in sizes.values())


def write(folder: Path, sizes: Shapes, count: int) -> None:
    """A file an update, its tensors' bytes one after another; those that are there are left."""
    folder.mkdir(exist_ok=True)
    for i in range(count):
        if not (path := folder / f"{i}.raw").exists():
            path.write_bytes(b"".join(t.numpy().tobytes() for t in draw(sizes, i).values()))


def _peak(name: str, sizes: Shapes, order: Sequence[int], folder: Path) -> float:
    torch.set_num_threads(1)
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    work = {"fedlora": _stream, "flower": _gather}[name]
    work(folder / "small", SMALL, [1, 0], {k: torch.ones(s) for k, s in SMALL.items()})
    state = {k: torch.ones(s) for k, s in sizes.items()}
    held = memory._now("cpu")
    work(folder / "large", sizes, order, state)
    return memory._most("cpu") - held


def _stream(folder: Path, sizes: Shapes, order: Sequence[int], state: Tensors) -> None:
    inbox = open_inbox(state, len(order), folder)
    for i in order:
        receive(inbox, i, _read(folder, sizes, i), state)
    inbox.changes()


def _gather(folder: Path, sizes: Shapes, order: Sequence[int], state: Tensors) -> None:
    replies = []
    for i in order:
        arrays = _read(folder, sizes, i).array_records["tensors"]
        replies.append(
            _reply(
                {k: np.frombuffer(a.data, np.float32).reshape(a.shape) for k, a in arrays.items()},
                i,
            )
        )
        del arrays
    FedAvg().aggregate_train(1, replies)


def _read(folder: Path, sizes: Shapes, i: int) -> RecordDict:
    """A reply as it comes: bytes that nobody else holds."""
    content = wire.pack(wire.Parcel())
    with (folder / f"{i % FILES}.raw").open("rb") as file:
        content["tensors"] = ArrayRecord(
            {
                k: Array("float32", (m, n), wire.RAW, file.read(4 * m * n))
                for k, (m, n) in sizes.items()
            }
        )
    return content
