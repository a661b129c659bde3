"""Text files that are whole, or as they were before; what the system says of files, in words."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FULL = {errno.ENOSPC, errno.EDQUOT}
BARRED = {errno.EACCES, errno.EPERM, errno.EROFS}
OPEN = {errno.EMFILE, errno.ENFILE}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Where what is inside fails to write, the OSError names this file, or its own. The system has
    no name for one that is open, and libraries in Rust raise errors of their own."""
    try:
        yield
    except OSError as e:
        if e.errno is None or e.filename is not None:
            raise
        raise OSError(e.errno, os.strerror(e.errno), str(path)) from e
    except Exception as e:
        if not (found := re.search(r"\(os error (\d+)\)", str(e))):
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from e


def barred(e: OSError) -> bool:
    """Whether the system refuses, whatever is asked of it: no room, no rights, no more files."""
    return e.errno in FULL | BARRED | OPEN


def trouble(e: OSError) -> str:
    """What a person can do about what the system says."""
    name = f" {e.filename}" if e.filename is not None else ""
    if e.errno in FULL:
        return f"there is no room left for{name or ' a file'} ({e.strerror}): free some"
    if e.errno in BARRED:
        return f"this user may not write or read{name or ' a file'} ({e.strerror})"
    if e.errno in OPEN:
        return f"this process has as many open files as it may ({e.strerror}): raise ulimit -n"
    return f"{e.strerror}:{name}" if name and e.strerror else f"{type(e).__name__}: {e}"


def write(path: Path, text: str, mode: int = 0o666) -> None:
    """Written aside, forced to disk and renamed; nothing is left of it where that fails.

    Args:
        mode: who may read and write the file, less the process's umask.
    """
    aside = path.with_name(f".{path.name}.new")
    aside.unlink(missing_ok=True)  # of a process that died: its mode is not to be trusted
    try:
        with writing(path):
            _write(aside, text, mode)
            os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _write(path: Path, text: str, mode: int) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


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
