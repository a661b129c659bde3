"""A table's columns, checked: what both kinds of rows have in common."""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from datasets import Dataset

from fedlora.errors import UserError


@dataclass(frozen=True)
class Table:
    """The checked rows of one place, labels still by name."""

    contents: Sequence[Any]  # of each row its text or its conversation
    names: list[str]  # the label of each row
    classes: list[str]  # the label names as the data set orders them; [] where it does not
    owners: list[Any] | None


def column(table: Dataset, where: str, name: str, key: str) -> list[Any]:
    """A column's values, none missing; rows are counted from 1 in messages."""
    if name not in table.column_names:
        near = sorted(table.column_names, key=lambda c: -SequenceMatcher(None, name, c).ratio())
        raise UserError(
            f"{where} has no column {name!r}; its columns are {', '.join(near)}. Set {key}."
        )
    values: list[Any] = table[name][:]
    for row, value in enumerate(values, start=1):
        if value is None or value != value or (isinstance(value, str) and not value.strip()):
            raise UserError(
                f"{where}: row {row} has no value in the column {name!r} ({key}). "
                f"Fill it or remove the row."
            )
    return values


def text_columns(table: Dataset) -> list[str]:
    return [c for c, f in table.features.items() if getattr(f, "dtype", "").endswith("string")]


def owners_of(table: Dataset, where: str, by: str) -> list[Any]:
    """The owner of each row: integers stay so (they sort as numbers), all else is a string."""
    values = column(table, where, by, "data.by")
    return values if all(isinstance(v, int) for v in values) else [str(v) for v in values]
