"""A table's columns, checked: what both kinds of rows have in common."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, time, timedelta
from decimal import Decimal
from difflib import SequenceMatcher
from typing import Any

from datasets import ClassLabel, Dataset

from fedlora.errors import UserError

INTEGER = re.compile(r"[+-]?[0-9]+")
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?", re.IGNORECASE)


@dataclass(frozen=True)
class Sheet:
    """A table as it was read: what `text` takes, None where nothing is, lists and objects."""

    columns: Mapping[str, Sequence[Any]]  # of one length
    classes: Mapping[str, list[str]] = field(default_factory=dict)  # of columns that count labels
    notes: list[str] = field(default_factory=list)  # what looks odd and is no error

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    @classmethod
    def of(cls, table: Dataset) -> "Sheet":
        features = table.features.items()
        classes = {name: list(f.names) for name, f in features if isinstance(f, ClassLabel)}
        return cls({name: table[name] for name in table.column_names}, classes)


@dataclass(frozen=True)
class Table:
    """The checked rows of one place, labels still by name."""

    contents: Sequence[Any]  # of each row its text or its conversation
    names: list[str]  # the label of each row
    classes: list[str]  # the label names as the data set orders them; [] where it does not
    owners: list[str] | None
    notes: list[str] = field(default_factory=list)  # what looks odd and is no error


def text(value: Any) -> str | None:
    """A value as text: as its file writes it where that is text too. None where nothing is.

    Raises:
        TypeError: a list, an object or bytes.
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float | Decimal | date | time | timedelta):
        return str(value) if value == value else None
    raise TypeError(f"holds {kind(value)}, not text")


def filled(value: Any) -> str:
    """A value as text, "" where nothing or only white space is. Raises TypeError as `text`."""
    found = text(value) or ""
    return found if found.strip() else ""


def kind(value: Any) -> str:
    """What a value is, in words."""
    if isinstance(value, Mapping):
        return f"an object ({', '.join(map(str, value))})"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return type(value).__name__


def column(sheet: Sheet, where: str, name: str, key: str) -> list[Any]:
    """A column's values, none missing; rows are counted from 1 in messages."""
    if name not in sheet.columns:
        near = sorted(sheet.columns, key=lambda c: -SequenceMatcher(None, name, c).ratio())
        raise UserError(
            f"{where} has no column {name!r}; its columns are {', '.join(near)}. "
            f"Set {key}, or name the column so{within(sheet)}."
        )
    values = list(sheet.columns[name][:])
    for row, value in enumerate(values, start=1):
        if value is None or value != value or (isinstance(value, str) and not value.strip()):
            raise UserError(
                f"{where}: row {row} has no value in the column {name!r} ({key}). "
                f"Fill it or remove the row."
            )
    return values


def texts(sheet: Sheet, where: str, name: str, key: str) -> list[str]:
    """A column's values as text, none missing."""
    found = []
    for row, value in enumerate(column(sheet, where, name, key), start=1):
        try:
            found.append(text(value) or "")
        except TypeError as error:
            others = ", ".join(c for c in text_columns(sheet) if c != name) or "its text columns"
            raise UserError(
                f"{where}: row {row} of the column {name!r} {error}. Set {key} to one of {others}"
                f"{within(sheet)}."
            ) from None
    return found


def within(sheet: Sheet) -> str:
    """A hint where what was read as one row holds a list of objects."""
    if len(sheet) == 1:
        for name, (value,) in sheet.columns.items():
            if isinstance(value, list) and value and isinstance(value[0], Mapping):
                return (
                    f"; or, if the rows are the {len(value)} objects in {name!r}, save them alone"
                )
    return ""


def text_columns(sheet: Sheet) -> list[str]:
    """The columns whose first value is text and no number."""
    first = {name: next(iter(values), None) for name, values in sheet.columns.items()}
    return [c for c, v in first.items() if isinstance(v, str) and not NUMBER.fullmatch(v)]


def in_order(names: Iterable[str]) -> list[str]:
    """Sorted, as numbers where all are integers."""
    found = sorted(names)
    return sorted(found, key=int) if all(map(INTEGER.fullmatch, found)) else found


def owners_of(sheet: Sheet, where: str, by: str) -> list[str]:
    """The owner of each row."""
    return texts(sheet, where, by, "data.by")
