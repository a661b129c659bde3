"""Rows from wherever they are: the bundled data, the hub, a file, a folder.

Every table is checked as it is read, so that what leaves this module can be trusted: texts that
are texts, a label for every row, and a message that names the place and the mend where not.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset

from fedlora.config import Data
from fedlora.data import conversations, labelled
from fedlora.errors import UserError
from fedlora.tasks import Kind

# Data that comes with fedlora: name -> the folder of its train and test rows.
BUNDLED = {name: Path(__file__).parent / name for name in ("sentiment", "definitions")}

# A kind of rows: its `fits` says whether a table has its columns, its `used` what is made of each,
# its `check` makes a `Table` of what was read, its `label_names` those of all tables, its
# `together` one `Dataset` of several.
RULES: dict[Kind, Any] = {"labelled": labelled, "conversations": conversations}

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

    labels: list[str]  # none where rows are conversations
    rows: Dataset  # text (str) or messages (list of role and content), and label (int)
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


def read(data: Data, kind: Kind = "labelled") -> Source:
    """Read and check what the configuration names, as rows of a kind.

    Raises:
        UserError: naming the file, row or column, with the mend.
    """
    rule = RULES[kind]
    raw = tables(data)
    by = data.by if data.partition == "natural" else None
    parts = {where: rule.check(table, where, data, by) for where, table in raw.rows.items()}
    test = None if raw.test is None else rule.check(raw.test, "the test rows", data, None)
    public = None if raw.public is None else rule.check(raw.public, "the public rows", data, None)
    given = {**parts, "the test rows": test, "the public rows": public}
    labels = rule.label_names({where: table for where, table in given.items() if table}, data)
    if data.partition == "split":
        owners: list[Any] | None = [c for c, part in parts.items() for _ in part.names]
    else:
        (owners,) = (part.owners for part in parts.values())
    return Source(
        labels=labels if kind == "labelled" else [],
        rows=rule.together(list(parts.values()), labels),
        owners=owners,
        test=None if test is None else rule.together([test], labels),
        public=None if public is None else rule.together([public], labels),
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
