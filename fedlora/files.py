"""Text files that are whole, or as they were before."""

import os
from pathlib import Path


def write(path: Path, text: str, mode: int = 0o666) -> None:
    """Written aside, forced to disk and renamed; nothing is left of it where that fails.

    Args:
        mode: who may read and write the file, less the process's umask.
    """
    aside = path.with_name(f".{path.name}.new")
    aside.unlink(missing_ok=True)  # of a process that died: its mode is not to be trusted
    try:
        handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def record(path: Path, text: str) -> None:
    """A file for its owner alone, all of it or nothing, that is on disk when this returns, with the
    folders that are new."""
    folder = path.parent
    new = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    write(path, text, 0o600)
    for each in (folder, *(each.parent for each in new)):
        sync(each)


def sync(folder: Path) -> None:
    """Force to disk what was renamed or made in a folder."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
