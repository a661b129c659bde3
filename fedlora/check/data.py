"""Columns and their kinds; whose rows they are, label by label."""

import re
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedlora.config import Data
from fedlora.data import Federation, files, sources
from fedlora.data.columns import INTEGER, NUMBER, Sheet, text
from fedlora.resident import Resident
from fedlora.tasks import Kind
from fedlora.untrusted import plain

EXAMPLE = 40  # characters
KINDS = {INTEGER: "whole numbers", NUMBER: "numbers", re.compile("(?i)true|false"): "true or false"}


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


def table(resident: Resident) -> tuple[str, Sheet]:
    """(where it is from, training rows as they were read): the node's own, or those of the
    configuration, of several files the first."""
    if name := resident.node.data:
        folder = sources.BUNDLED.get(name)
        path = next(folder.glob("train.*")) if folder else Path(name).expanduser()
        return str(path), files.read(path)
    return next(iter(sources.tables(resident.config.data).rows.items()))


def columns(table: Sheet, data: Data, kind: Kind) -> list[Column]:
    """The columns of a table of these rows, in its order."""
    uses = sources.RULES[kind].used(table, data)
    if data.partition == "natural":
        uses = {**uses, data.by: "client"}
    return [
        Column(
            name,
            _kind(values),
            len(set(values)) if all(isinstance(v, Hashable) for v in values) else None,
            plain(_said(values[0]), EXAMPLE),
            uses.get(name, ""),
        )
        for name, values in ((name, column[:]) for name, column in table.columns.items())
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


def _kind(values: Sequence[Any]) -> str:
    """What all values that are there are, in words."""
    there = [value for value in values if value is not None]
    if not there:
        return "empty"
    if any(isinstance(value, list) for value in there):
        return "list"
    said = [_said(value) for value in there]
    for pattern, kind in KINDS.items():
        if all(re.fullmatch(pattern, one) for one in said):
            return kind
    return "text" if any(isinstance(value, str) for value in there) else type(there[0]).__name__


def _said(value: Any) -> str:
    try:
        return text(value) or ""
    except TypeError:
        return str(value)
