"""Columns and their kinds; whose rows they are, label by label."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, List

from fedlora.config import Data
from fedlora.data import Federation, sources
from fedlora.resident import Resident
from fedlora.tasks import Kind
from fedlora.untrusted import plain

EXAMPLE = 40  # characters
NAMES = {"string": "text", "large_string": "text", "bool": "true or false", "null": "empty"}


@dataclass(frozen=True)
class Column:
    """A column of the data: its number of `different` values (None where each is a list)."""

    name: str
    kind: str
    different: int | None
    example: str
    use: str  # what a run makes of it, "" where nothing


@dataclass(frozen=True)
class Owner:
    """What a client has: rows that it trains on and holds out, and of the former how many of each
    label, by name."""

    client: str
    trained: int
    held: int
    labels: dict[str, int]


def table(resident: Resident) -> tuple[str, Dataset]:
    """(where it is from, training rows as they were read): the node's own, or those of the
    configuration, of several files the first."""
    if name := resident.node.data:
        folder = sources.BUNDLED.get(name)
        path = next(folder.glob("train.*")) if folder else Path(name).expanduser()
        return str(path), sources.read_file(path)
    return next(iter(sources.tables(resident.config.data).rows.items()))


def columns(table: Dataset, data: Data, kind: Kind) -> list[Column]:
    """The columns of a table of these rows, in its order."""
    uses = sources.RULES[kind].used(table, data)
    if data.partition == "natural":
        uses = {**uses, data.by: "client"}
    return [
        Column(
            name,
            held := _kind(table.features, name),
            None if held == "list" else len(table.unique(name)),
            plain(str(table[0][name]) if len(table) else "", EXAMPLE),
            uses.get(name, ""),
        )
        for name in table.column_names
    ]


def owners(federation: Federation) -> list[Owner]:
    """Every client with its rows."""
    found = federation.rows["label"][:] if federation.labels else []
    return [
        Owner(
            client,
            len(federation.trained[client]),
            len(federation.held[client]),
            _counts((found[row] for row in federation.trained[client]), federation.labels)
            if federation.labels
            else {},
        )
        for client in federation.clients
    ]


def commonest(federation: Federation) -> tuple[str, float]:
    """The commonest label of the server's test rows and its share: the score of who always says
    it. ("", 0) where there is none."""
    if not federation.labels or not len(federation.test):
        return "", 0.0
    counts = _counts(federation.test["label"][:], federation.labels)
    label = max(counts, key=counts.__getitem__)
    return label, counts[label] / len(federation.test)


def _counts(labels: Any, names: list[str]) -> dict[str, int]:
    counts: Mapping[int, int] = Counter(labels)
    return {name: counts.get(i, 0) for i, name in enumerate(names)}


def _kind(features: Features, name: str) -> str:
    feature: Any = features[name]
    if isinstance(feature, List):
        return "list"
    dtype = str(getattr(feature, "dtype", type(feature).__name__))
    if dtype.startswith(("int", "uint")):
        return "whole numbers"
    if dtype.startswith(("float", "double")):
        return "numbers"
    return NAMES.get(dtype, dtype)
