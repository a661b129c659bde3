"""The model, its adapter, and what a run of them needs."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from fedlora.adapters import targets
from fedlora.capacity import Needs, needs
from fedlora.cost import Cost, cost, skeleton
from fedlora.memory import Memory, memory
from fedlora.resident import Resident


@dataclass(frozen=True)
class Facts:
    """A loaded model with its adapter. `layers` are the adapted ones by the end of their name, with
    their number; `drawn` the weights that the checkpoint does not have."""

    architecture: str
    parameters: int
    dtype: str
    vocabulary: int
    longest: int  # tokens of a row, at most
    kind: str
    rank: int
    layers: dict[str, int]
    trained: int
    padding: str
    drawn: list[str]


@dataclass(frozen=True)
class Bill:
    """What a run costs: bytes a client and round, memory of a client in training, the machine's."""

    traffic: Cost
    memory: Memory
    needs: Needs


def facts(resident: Resident) -> Facts:
    """Of the model that a run starts from, as it is loaded."""
    adapter, task = resident.adapter, resident.task
    model: Any = adapter.model.get_base_model()
    own = {id(t) for t in adapter.live().values()}
    trained = adapter.trainable(adapter.parts & resident.strategy.trained)
    return Facts(
        architecture=type(model).__name__,
        parameters=sum(p.numel() for p in model.parameters() if id(p) not in own),
        dtype=str(model.dtype).removeprefix("torch."),
        vocabulary=model.get_input_embeddings().num_embeddings,
        longest=task.max_length,
        kind=adapter.kind,
        rank=adapter.scaling.rank,
        layers=dict(Counter(name.rpartition(".")[2] for name in adapter.shapes)),
        trained=sum(p.numel() for p in trained),
        padding=str(task.tokenizer.pad_token),
        drawn=sorted(task.lacking),
    )


def bill(resident: Resident) -> Bill:
    """What a run costs with the clients and labels that the data have."""
    config, strategy, federation = resident.config, resident.strategy, resident.federation
    counted = {"clients": max(1, len(federation.clients))}
    config = config.model_copy(update={"data": config.data.model_copy(update=counted)})
    base: Any = resident.adapter.model.get_base_model()
    model: Any = skeleton(config.model, len(federation.labels))
    model.drawn = targets.drawn(base)  # a pooler among it is sent as a head is
    found, shapes = cost(config, strategy, model), targets.targets(model, config.adapter)
    trains = memory(config, model, found.parameters, found.trained_parameters)
    return Bill(found, trains, needs(config, strategy, found, trains, shapes))
