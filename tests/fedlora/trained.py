"""One client's steps on a tiny Llama, by each of the loops that train."""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from fedlora import stacking, training
from fedlora.adapters import Adapter
from fedlora.adapters.recompute import recompute
from fedlora.config import Adapter as Fields
from fedlora.config import Config, Privacy, Train
from fedlora.device import settled
from fedlora.privacy import stacking as private
from fedlora.privacy.accounting import Mechanism
from fedlora.tasks.encoded import Encoded
from fedlora.tasks.instruction import Instruction
from fedlora.tensors import Tensors
from tests.fedlora.tasks.talk import turns

TALKS = [turns(" ".join(["what"] * (2 + 3 * i)), "it is red") for i in range(4)]
LOOPS = ("plain", "stacked", "private")
SGD = Train(optimizer="sgd", lr=0.1, batch_size=4, steps=3, clip=None)


def task(folder: Path, **model: Any) -> Instruction:
    """Of a saved Llama, with these settings of the model."""
    tree = {"model": {"name": str(folder), "task": "instruction", **model}}
    return Instruction(settled(Config.model_validate(tree), "cpu"))


def rows(task: Instruction) -> Encoded:
    return task.encode(Dataset.from_dict({"messages": TALKS}))


def adapter(task: Instruction, again: bool = False, **fields: Any) -> Adapter:
    """Of rank 4 on all linear layers, with a B that is not zero.

    Args:
        again: whether layers recompute.
    """
    model = task.model(0)
    wanted = {"kind": "lora", "rank": 4, "target_modules": "all-linear", **fields}
    made = Adapter(model, Fields.model_validate(wanted), seed=0)
    if again:
        recompute(model)
    return made


def start(made: Adapter) -> Tensors:
    """What training begins with: PEFT's, and a B like A."""
    first = made.initial()
    return {k: t if k.endswith("A") else _like(t) for k, t in first.items()}


def _like(tensor: torch.Tensor) -> torch.Tensor:
    return torch.linspace(-0.2, 0.2, tensor.numel()).view(tensor.shape)


def trained(loop: str, task: Instruction, made: Adapter, settings: Train = SGD) -> Tensors:
    """What became of A and B."""
    encoded, parts = rows(task), {"A", "B"}
    member = stacking.Member(start(made), made.scaling.at(4), encoded, (0, "client"))
    if loop == "plain":
        made.load(member.tensors)
        training.train(task, made, parts, encoded, settings, member.seed)
        return made.read(parts)
    if loop == "stacked":
        ((found, _),) = stacking.train(task, made, [member], parts, settings)
        return found
    privacy = Privacy(noise_multiplier=1e-9, clip=1e3, statistics=False)
    noise = Mechanism(1e-9, 1.0, 1e-3), b"secret"
    ((found, _),) = private.train(task, made, [member], [noise], parts, settings, privacy)
    return found


def apart(found: Tensors, truth: Tensors, first: Tensors) -> float:
    """How far off what training changed is: a relative error in the norm of all tensors."""
    keys = sorted(truth)
    moved, true = (torch.cat([(t[k] - first[k]).flatten() for k in keys]) for t in (found, truth))
    return float((moved - true).norm() / true.norm())
