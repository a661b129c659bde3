"""A base's own classification head, brought to the labels of a run.

Shapes: an output layer has a row for each of c labels.
"""

import copy
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from fedlora.adapters import targets
from fedlora.weights import Loaded

# A label is told by its name; by how it is written only where that is clear.
READINGS: tuple[Callable[[str], str], ...] = (str, lambda name: " ".join(name.casefold().split()))


def labels(config: PretrainedConfig) -> list[str]:
    """The names of a base's own labels, in the order of its head's rows."""
    return [str(name) for _, name in sorted((config.id2label or {}).items())]


def named(labels: Sequence[str]) -> dict[str, Any]:
    """The settings of a model that has these labels."""
    return {
        "id2label": dict(enumerate(labels)),
        "label2id": {label: i for i, label in enumerate(labels)},
    }


def rows(own: Sequence[str], wanted: Sequence[str]) -> list[int]:
    """The row of each wanted label in a head with labels of its `own`, by name, exact or apart from
    case and spaces; none where one is not there, or could be two."""
    for reading in READINGS:
        there, asked = [[reading(name) for name in names] for names in (own, wanted)]
        clear = len(set(there)) == len(there) and len(set(asked)) == len(asked)
        if clear and set(asked) <= set(there):
            return [there.index(name) for name in asked]
    return []


def fit(found: Loaded, own: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """Give a model's head the wanted labels' rows, in their order; where its own labels are others,
    its output layer is drawn anew, from torch's global generator. Returns what is to be said of it.
    """
    model = found.model
    if found.resized:
        return [_anew(own, wanted)]
    if not (output := _output(model, found.lacking)):
        return []
    taken = rows(own, wanted)
    if not taken:
        _draw(model, output)
        return [_anew(own, wanted)]
    if taken != list(range(len(own))):
        _take(model, output, taken)
        vars(model).update(num_labels=len(wanted))
        vars(model.config).update(named(wanted))
    if sorted(own) == sorted(wanted):
        return []
    used = _listed([own[i] for i in taken])
    return [f"the base's own head is used: its labels {used} for the data's {_listed(wanted)}"]


def drawn(model: PreTrainedModel) -> list[str]:
    """What is to be said of a pooler that the checkpoint lacks."""
    names = targets.drawn(model)
    return [f"the base has no weights of {_listed(names)}: drawn anew, as its head is"] * bool(
        names
    )


def _anew(own: Sequence[str], wanted: Sequence[str]) -> str:
    return (
        f"the base has a head of its own for other labels ({_listed(own)}) than the data "
        f"({_listed(wanted)}): its output layer is drawn anew"
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _output(model: PreTrainedModel, lacking: Collection[str]) -> list[str]:
    """The head's parameters that have a row a label and came with the checkpoint: those that are
    longer in a model of one label more."""
    heads = tuple(f"{name}." for name in targets.head(model))
    count = len(model.config.id2label or {})
    found = {
        k: p.shape
        for k, p in model.named_parameters()
        if k.startswith(heads) and k not in lacking and p.shape[:1] == (count,)
    }
    if not found:
        return []
    config = copy.deepcopy(model.config)
    config.num_labels = count + 1
    with torch.device("meta"):
        wider = type(model)(config)
    return [k for k, shape in found.items() if wider.get_parameter(k).shape != shape]


def _draw(model: PreTrainedModel, names: Collection[str]) -> None:
    """As the architecture draws a head that a checkpoint lacks."""
    for name in names:
        module, leaf = _owner(model, name)
        setattr(module, leaf, nn.Parameter(torch.empty_like(getattr(module, leaf))))
    for module in {id(m): m for m, _ in (_owner(model, name) for name in names)}.values():
        model._init_weights(module)


def _take(model: PreTrainedModel, names: Collection[str], rows: Sequence[int]) -> None:
    for name in names:
        module, leaf = _owner(model, name)
        setattr(module, leaf, nn.Parameter(getattr(module, leaf).detach()[list(rows)]))
        if isinstance(module, nn.Linear):
            module.out_features = len(rows)


def _owner(model: PreTrainedModel, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return model.get_submodule(path), leaf
