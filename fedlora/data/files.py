"""Files that hold rows: which there are in a folder, and what each of them says.

They are read whole, by this process, and nothing of them is written anywhere: there is no copy of
an owner's rows, and none that could be older than its file.
"""

import gzip
from pathlib import Path
from typing import Any

from fedlora.data.columns import Sheet
from fedlora.data.formats import FORMS
from fedlora.errors import UserError

GZIPPED = tuple(form for form in FORMS if form != ".parquet")
TYPES = f"{', '.join(FORMS)} (and .gz of all but .parquet)"
SERVER = ("train", "test", "public")  # names with a meaning, in whatever case


def form(path: Path) -> str:
    """The form that the file's ending says, in whatever case; "" where it is none of FORMS."""
    name = path.name.lower()
    packed = name.removesuffix(".gz")
    known = FORMS if packed == name else GZIPPED
    return next((ending for ending in known if packed.endswith(ending)), "")


def stem(path: Path) -> str:
    """The file's name without the ending of its form."""
    packed = len(".gz") if path.name.lower().endswith(".gz") else 0
    name = path.name[: len(path.name) - packed - len(form(path))]
    return name.lower() if name.lower() in SERVER else name


def of(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """({stem: file} of the folder's tables, the names of all else that is there and not hidden),
    each sorted by name.

    Raises:
        UserError: two tables have one stem, or the folder cannot be read.
    """
    found: dict[str, Path] = {}
    others = []
    try:
        there = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror}).") from None
    for path in there:
        if not form(path) or path.is_dir():
            others.append(path.name)
        elif stem(path) in found:
            raise UserError(
                f"{found[stem(path)]} and {path.name} have the same name but for the ending. "
                f"Keep one of them."
            )
        else:
            found[stem(path)] = path
    return found, others


def read(path: Path) -> Sheet:
    """The table that a file holds.

    Raises:
        UserError: it cannot be read, is damaged or has no rows; the message says why and where.
    """
    if not form(path):
        raise UserError(f"{path}: unknown file type {path.suffix!r}. Known are {TYPES}.")
    if path.exists() and not path.is_file():  # a pipe, say, for which a reader would wait
        raise UserError(f"{path} is no ordinary file. Save the rows as one.")
    packed = path.name.lower().endswith(".gz")
    try:
        with path.open("rb") as raw:
            file: Any = gzip.GzipFile(fileobj=raw) if packed else raw
            sheet = FORMS[form(path)](file)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}).") from None
    except Exception as error:  # whatever the reader of that form raises
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} cannot be read: {reason}. Mend the file.") from error
    if not len(sheet):
        header = ", ".join(sheet.columns)
        empty = f"names columns ({header})" if header else "is empty"
        raise UserError(f"{path} {empty} and has no rows. Fill it or remove it.")
    return sheet
