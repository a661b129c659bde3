"""Rows from wherever they are: the bundled data, the hub, a file, a folder.

Every table is checked as it is read, so that what leaves this module can be trusted: texts that
are texts, a label for every row, and a message that names the place and the mend where not.
"""

import errno
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset

from fedlora.config import Data
from fedlora.data import conversations, files, labelled, notes
from fedlora.data.columns import Sheet, Table
from fedlora.data.notes import SHOWN
from fedlora.errors import UserError
from fedlora.tasks import Kind

# Data that comes with fedlora: name -> the folder of its train and test rows.
BUNDLED = {name: Path(__file__).parent / name for name in ("sentiment", "definitions")}

# A kind of rows: its `fits` says whether a table has its columns, its `used` what is made of each,
# its `check` makes a `Table` of what was read, its `label_names` those of all tables, its
# `together` one `Dataset` of several.
RULES: dict[Kind, Any] = {"labelled": labelled, "conversations": conversations}

FULL = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT}  # nothing is written


@dataclass(frozen=True)
class Source:
    """All rows of a data set, checked. `owners[i]` says whose row i of `rows` is, or is None where
    no column and no file tells; `test` and `public` are None where the data brings no such rows."""

    labels: list[str]  # none where rows are conversations
    rows: Dataset  # text (str) or messages (list of role and content), and label (int)
    owners: list[str] | None
    test: Dataset | None  # as rows
    public: Dataset | None  # as rows
    notes: list[str]  # what looks odd and is no error


@dataclass(frozen=True)
class Raw:
    """Tables as they were read: {place: training rows}, where under "split" the places are the
    clients; and the server's own."""

    rows: dict[str, Sheet]
    test: Sheet | None = None
    public: Sheet | None = None
    notes: Sequence[str] = ()


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
    served = {"the test rows": test, "the public rows": public}
    given = {**parts, **{where: table for where, table in served.items() if table}}
    labels = rule.label_names(given, data)
    if data.partition == "split":
        owners: list[str] | None = [c for c, part in parts.items() for _ in part.names]
        named = notes.parts(Counter(owners))
    else:
        (owners,) = (part.owners for part in parts.values())
        named = []
    return Source(
        labels=labels if kind == "labelled" else [],
        rows=rule.together(list(parts.values()), labels),
        owners=owners,
        test=None if test is None else rule.together([test], labels),
        public=None if public is None else rule.together([public], labels),
        notes=[*raw.notes, *remarks(list(given.values()), owners), *named],
    )


def remarks(tables: Sequence[Table], owners: Sequence[str] | None = None) -> list[str]:
    """What looks odd in checked rows, each said once."""
    own = (note for table in tables for note in table.notes)
    labels = Counter(name for table in tables for name in table.names)
    texts = Counter(x for table in tables for x in table.contents if isinstance(x, str))
    return [
        *dict.fromkeys(own),
        *notes.alike("labels", labels),
        *notes.mixed(labels),
        *notes.nothing("labels", labels),
        *notes.nothing("texts", texts),
        *notes.alike("clients", Counter(owners)),
    ]


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
        there, others = files.of(path)
        found = {client: files.read(file) for client, file in there.items()}
        if not found:
            raise UserError(
                f"no client's file in {path}: put one file a client there ({files.TYPES}). "
                f"It has {', '.join(others[:SHOWN]) or 'no file'}."
            )
        test, public = found.pop("test", None), found.pop("public", None)
        return Raw(found, test, public, passed_over(path, others))
    if path.is_dir():
        there, others = files.of(path)
        if "train" not in there:
            has = ", ".join(sorted([*others, *(file.name for file in there.values())]))
            raise UserError(
                f"no training rows in {path}: it needs a file train with one of the endings "
                f"{files.TYPES}. It has {has or 'no file'}."
            )
        train, tested = there.pop("train"), there.pop("test", None)
        others = sorted([*others, *(file.name for file in there.values())])
        return Raw(
            {str(train): files.read(train)},
            files.read(tested) if tested else None,
            notes=[] if data.name in BUNDLED else passed_over(path, others),
        )
    if path.exists():
        return Raw({str(path): files.read(path)})
    if data.name.startswith(("/", ".", "~")) or files.form(path) or data.name.count("/") > 1:
        raise UserError(
            f"there is no file or folder {path} (looked from {Path.cwd()}). Correct data.name."
        )
    return read_hub(data.name)


def passed_over(folder: Path, names: list[str]) -> list[str]:
    """A note on what a folder has beside the rows that are read."""
    more = [f"and {len(names) - SHOWN} more"] if len(names) > SHOWN else []
    return [f"not read in {folder}: {', '.join(names[:SHOWN] + more)}"] if names else []


def read_hub(name: str) -> Raw:
    """The train split (or the only one) and the test split, if any, of a data set of the hub."""
    try:
        splits = datasets.load_dataset(name)
    except Exception as error:  # the network, the hub and the data set's own files can all fail
        if (full := cache_fault(error)) is not None:
            raise UserError(
                f"{name!r} cannot be kept in {full.filename or datasets.config.HF_DATASETS_CACHE} "
                f"({full.strerror}): make room there, or set HF_HOME to another folder."
            ) from error
        raise UserError(
            f"{name!r} is no file or folder here, and the hub does not give a data set of that "
            f"name ({type(error).__name__}: {(str(error).splitlines() or [''])[0]}). Correct "
            f"data.name, or go online once so that it is cached."
        ) from error
    train = "train" if "train" in splits or len(splits) != 1 else next(iter(splits))
    if train not in splits:
        raise UserError(f"{name} has no split 'train'; it has {', '.join(splits)}.")
    test = splits.get("test")
    return Raw({name: Sheet.of(splits[train])}, None if test is None else Sheet.of(test))


def cache_fault(error: BaseException | None) -> OSError | None:
    """The reason why nothing could be written, among the reasons of an error."""
    while error is not None and not (isinstance(error, OSError) and error.errno in FULL):
        error = error.__cause__ or error.__context__
    return error
