"""Rows that are a text with a label."""

from collections.abc import Mapping, Sequence

from datasets import Dataset, Features, Value

from fedlora.config import Data
from fedlora.data.columns import (
    INTEGER,
    NUMBER,
    Sheet,
    Table,
    column,
    in_order,
    owners_of,
    text_columns,
    texts,
)
from fedlora.errors import UserError

NONE = -100  # as a label: none of those that are learnt, as torch's cross-entropy has it


def fits(sheet: Sheet, data: Data) -> bool:
    """Whether the table has the columns."""
    return {data.text, data.label} <= sheet.columns.keys()


def used(sheet: Sheet, data: Data) -> dict[str, str]:
    """What is made of its columns, by name."""
    return {data.text: "text", data.label: "label"}


def check(sheet: Sheet, where: str, data: Data, by: str | None) -> Table:
    """The table's text, label and owner columns, each row's value there and of the right kind."""
    if not len(sheet):
        raise UserError(f"{where} has no rows. Fill it or remove it.")
    found = texts(sheet, where, data.text, "data.text")
    if all(NUMBER.fullmatch(text.strip()) for text in found):
        raise UserError(
            f"{where}: the column {data.text!r} holds numbers, not text. "
            f"Set data.text to one of {', '.join(text_columns(sheet)) or 'its text columns'}."
        )
    return Table(
        contents=found,
        names=names_of(sheet, where, data.label),
        classes=sheet.classes.get(data.label, []),
        owners=owners_of(sheet, where, by) if by else None,
        notes=sheet.notes,
    )


def names_of(sheet: Sheet, where: str, label: str) -> list[str]:
    """The label of each row by name: as it is written, integers in decimal."""
    if classes := sheet.classes.get(label):
        values = column(sheet, where, label, "data.label")
        for row, value in enumerate(values, start=1):
            if not 0 <= value < len(classes):
                raise UserError(
                    f"{where}: row {row} has the label {value}, which is none of the "
                    f"{len(classes)} labels of {label!r}. Fill it or remove the row."
                )
        return [classes[value] for value in values]
    names = texts(sheet, where, label, "data.label")
    kinds = {name for name in names if not INTEGER.fullmatch(name)}
    if kinds and all(NUMBER.fullmatch(name) for name in names):
        raise UserError(
            f"{where}: the column {label!r} holds fractions, as {min(kinds)}; labels are strings "
            f"or integers. Convert them, or set data.label to another column."
        )
    return names


def label_names(tables: Mapping[str, Table], data: Data, others: bool = False) -> list[str]:
    """data.labels, of which every row of the tables (by place) has one, or with `others` may have
    none; else the label names of all tables: in the data set's own order where it has one, else
    sorted, integers as numbers."""
    if data.labels is not None:
        for where, table in tables.items():
            for row, name in enumerate(table.names, start=1):
                if name not in data.labels and not others:
                    raise UserError(
                        f"{where}: row {row} has the label {name!r}, which is none of data.labels "
                        f"({', '.join(data.labels)}). Correct it, or add it to data.labels."
                    )
        return list(data.labels)
    ordered = list(dict.fromkeys(name for table in tables.values() for name in table.classes))
    more = {name for table in tables.values() for name in table.names} - set(ordered)
    labels = ordered + in_order(more)
    if len(labels) < 2:
        raise UserError(
            f"{', '.join(tables)}: every row has the label {labels[0]!r}, so there is nothing to "
            f"learn. Is data.label = {data.label!r} the right column? Where other clients have "
            f"other labels, name them all in data.labels."
        )
    return labels


def together(tables: Sequence[Table], labels: Sequence[str]) -> Dataset:
    """The rows of all tables, labels as indices into `labels`, NONE for those that it lacks."""
    index = {name: i for i, name in enumerate(labels)}
    columns = {
        "text": [text for table in tables for text in table.contents],
        "label": [index.get(name, NONE) for table in tables for name in table.names],
    }
    return Dataset.from_dict(columns, Features(text=Value("string"), label=Value("int64")))
