"""Rows from wherever they are: the bundled data, the hub, a file, a folder.

Every table is checked as it is read, so that what leaves this module can be trusted: texts that
are texts, a label for every row, and a message that names the place and the mend where not.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import datasets
from datasets import ClassLabel, Dataset, Features, Value

from fedlora.config import Data
from fedlora.errors import UserError

# Data that comes with fedlora: name -> the folder of its train and test rows.
BUNDLED = {name: Path(__file__).parent / name for name in ("sentiment", "definitions")}

READERS: dict[str, tuple[str, dict[str, Any]]] = {
    # Only an empty cell is a missing value: pandas would also lose texts such as "None" and "NA".
    ".csv": ("csv", {"keep_default_na": False, "na_values": [""]}),
    ".jsonl": ("json", {}),
    ".json": ("json", {}),
    ".parquet": ("parquet", {}),
}
TYPES = ", ".join(READERS)


@dataclass(frozen=True)
class Source:
    """All rows of a data set, checked. `owners[i]` says whose row i of `rows` is, or is None where
    no column and no file tells; `test` and `public` are None where the data brings no such rows."""

    labels: list[str]
    rows: Dataset  # text (str), label (int, into labels)
    owners: list[Any] | None
    test: Dataset | None  # as rows
    public: Dataset | None  # as rows


@dataclass(frozen=True)
class Raw:
    """Tables as they were read: {place: training rows}, where under "split" the places are the
    clients; and the server's own."""

    rows: dict[str, Dataset]
    test: Dataset | None = None
    public: Dataset | None = None


@dataclass(frozen=True)
class Table:
    """The checked rows of one place, labels still by name."""

    texts: list[str]
    names: list[str]  # the label of each row
    classes: list[str]  # the label names as the data set orders them; [] where it does not
    owners: list[Any] | None


def read(data: Data) -> Source:
    """Read and check what the configuration names.

    Raises:
        UserError: naming the file, row or column, with the mend.
    """
    raw = tables(data)
    by = data.by if data.partition == "natural" else None
    parts = {where: check(table, where, data, by) for where, table in raw.rows.items()}
    test = None if raw.test is None else check(raw.test, "the test rows", data, None)
    public = None if raw.public is None else check(raw.public, "the public rows", data, None)
    given = {**parts, "the test rows": test, "the public rows": public}
    labels = label_names({where: table for where, table in given.items() if table}, data)
    if data.partition == "split":
        owners: list[Any] | None = [c for c, part in parts.items() for _ in part.names]
    else:
        (owners,) = (part.owners for part in parts.values())
    return Source(
        labels=labels,
        rows=together(list(parts.values()), labels),
        owners=owners,
        test=None if test is None else together([test], labels),
        public=None if public is None else together([public], labels),
    )


def tables(data: Data) -> Raw:
    """The tables that the configuration names. Under "split" a folder without any client's is a
    coordinator's."""
    path = BUNDLED.get(data.name) or Path(data.name).expanduser()
    if data.partition == "split":
        if not path.is_dir():
            raise UserError(
                f"data.partition = 'split' needs a folder with one file a client, and "
                f"{data.name!r} is none. Set data.name to one, or choose another data.partition."
            )
        found = {c: read_file(f) for c, f in files_of(path).items()}
        if not found:
            raise UserError(f"no client's file in {path}: put one file a client there ({TYPES}).")
        test, public = found.pop("test", None), found.pop("public", None)
        return Raw(found, test, public)
    if path.is_dir():
        files = files_of(path)
        if "train" not in files:
            raise UserError(
                f"no training rows in {path}: it needs a file train with one of the endings "
                f"{TYPES}. It has {', '.join(f.name for f in files.values()) or 'no such file'}."
            )
        train, test = files["train"], files.get("test")
        return Raw({str(train): read_file(train)}, test and read_file(test))
    if path.is_file():
        return Raw({str(path): read_file(path)})
    if data.name.startswith(("/", ".", "~")) or path.suffix in READERS or data.name.count("/") > 1:
        raise UserError(
            f"there is no file or folder {path} (looked from {Path.cwd()}). Correct data.name."
        )
    return read_hub(data.name)


def files_of(folder: Path) -> dict[str, Path]:
    """{stem: file} of the folder's tables, sorted by name."""
    found: dict[str, Path] = {}
    for path in sorted(p for p in folder.iterdir() if p.suffix in READERS):
        if path.stem in found:
            raise UserError(
                f"{found[path.stem]} and {path.name} have the same name but for the ending. "
                f"Keep one of them."
            )
        found[path.stem] = path
    return found


def read_file(path: Path) -> Dataset:
    """A table of any known type, by Datasets and through its cache."""
    if path.suffix not in READERS:
        raise UserError(f"{path}: unknown file type {path.suffix!r}. Known are {TYPES}.")
    builder, options = READERS[path.suffix]
    try:
        with no_bars():
            return datasets.load_dataset(builder, data_files=str(path), split="train", **options)
    except Exception as error:  # whatever the reader of that type raises
        reason = (str(error.__cause__ or error).splitlines() or ["it is empty"])[0]
        raise UserError(
            f"{path} cannot be read as {path.suffix[1:]}, or has no rows ({reason}). Mend the file "
            f"or remove it."
        ) from error


def read_hub(name: str) -> Raw:
    """The train split (or the only one) and the test split, if any, of a data set of the hub."""
    try:
        splits = datasets.load_dataset(name)
    except Exception as error:  # the network, the hub and the data set's own files can all fail
        raise UserError(
            f"{name!r} is no file or folder here, and the hub does not give a data set of that "
            f"name ({type(error).__name__}: {(str(error).splitlines() or [''])[0]}). Correct "
            f"data.name, or go online once so that it is cached."
        ) from error
    train = "train" if "train" in splits or len(splits) != 1 else next(iter(splits))
    if train not in splits:
        raise UserError(f"{name} has no split 'train'; it has {', '.join(splits)}.")
    return Raw({name: splits[train]}, splits.get("test"))


@contextmanager
def no_bars() -> Iterator[None]:
    """Without the progress bars of Datasets: local files are read in a moment."""
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def check(table: Dataset, where: str, data: Data, by: str | None) -> Table:
    """The table's text, label and owner columns, each row's value there and of the right kind."""
    if not len(table):
        raise UserError(f"{where} has no rows. Fill it or remove it.")
    texts = column(table, where, data.text, "data.text")
    if not all(isinstance(t, str) for t in texts):
        raise UserError(
            f"{where}: the column {data.text!r} holds {table.features[data.text]}, not text. "
            f"Set data.text to one of {', '.join(text_columns(table)) or 'its text columns'}."
        )
    return Table(
        texts=texts,
        names=names_of(table, where, data.label),
        classes=classes_of(table, data.label),
        owners=owners_of(table, where, by) if by else None,
    )


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


def classes_of(table: Dataset, label: str) -> list[str]:
    feature = table.features[label]
    return list(feature.names) if isinstance(feature, ClassLabel) else []


def names_of(table: Dataset, where: str, label: str) -> list[str]:
    """The label of each row by name: strings as they are, integers in decimal."""
    values = column(table, where, label, "data.label")
    classes = classes_of(table, label)
    if classes:
        for row, value in enumerate(values, start=1):
            if not 0 <= value < len(classes):
                raise UserError(
                    f"{where}: row {row} has the label {value}, which is none of the "
                    f"{len(classes)} labels of {label!r}. Fill it or remove the row."
                )
        return [classes[value] for value in values]
    if not all(isinstance(value, str | int) for value in values):
        raise UserError(
            f"{where}: the column {label!r} holds {table.features[label]}; labels are strings or "
            f"integers. Convert them, or set data.label to another column."
        )
    return [str(value) for value in values]


def owners_of(table: Dataset, where: str, by: str) -> list[Any]:
    """The owner of each row: integers stay so (they sort as numbers), all else is a string."""
    values = column(table, where, by, "data.by")
    return values if all(isinstance(v, int) for v in values) else [str(v) for v in values]


def label_names(tables: Mapping[str, Table], data: Data) -> list[str]:
    """data.labels, of which every row of the tables (by place) has one; else the label names of all
    tables: in the data set's own order where it has one, else sorted, integers as numbers."""
    if data.labels is not None:
        for where, table in tables.items():
            for row, name in enumerate(table.names, start=1):
                if name not in data.labels:
                    raise UserError(
                        f"{where}: row {row} has the label {name!r}, which is none of data.labels "
                        f"({', '.join(data.labels)}). Correct it, or add it to data.labels."
                    )
        return list(data.labels)
    ordered = list(dict.fromkeys(name for table in tables.values() for name in table.classes))
    others = {name for table in tables.values() for name in table.names} - set(ordered)
    try:
        labels = ordered + sorted(others, key=int)
    except ValueError:
        labels = ordered + sorted(others)
    if len(labels) < 2:
        raise UserError(
            f"{', '.join(tables)}: every row has the label {labels[0]!r}, so there is nothing to "
            f"learn. Is data.label = {data.label!r} the right column? Where other clients have "
            f"other labels, name them all in data.labels."
        )
    return labels


def together(tables: Sequence[Table], labels: Sequence[str]) -> Dataset:
    """The rows of all tables, labels as indices into `labels`."""
    index = {name: i for i, name in enumerate(labels)}
    columns = {
        "text": [text for table in tables for text in table.texts],
        "label": [index[name] for table in tables for name in table.names],
    }
    return Dataset.from_dict(columns, Features(text=Value("string"), label=Value("int64")))
