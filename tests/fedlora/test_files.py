"""Files that are whole or as before; the ledger's tests hold the order of writing and syncing."""

import errno
import os
import stat
from pathlib import Path

import pytest

from fedlora import files


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    """The text is there, nothing else is, and only those may read it whom the mode lets."""
    path = tmp_path / "x.json"
    files.write(path, "old")
    files.write(path, "ε", 0o600)
    assert path.read_text("utf-8") == "ε"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that gives out in the middle: the old text, and no half of the new one."""
    path = tmp_path / "x.json"
    files.write(path, "old")

    def full(_: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        files.write(path, "new")
    assert path.read_text("utf-8") == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("raised", "words"),
    [
        (OSError(errno.ENOSPC, "No space left"), "no room left for here/x"),
        (OSError(errno.EDQUOT, "Quota"), "no room left for here/x"),
        (OSError(errno.EACCES, "No", "there"), "may not write or read there"),
        (OSError(errno.EROFS, "Read-only"), "may not write or read here/x"),
        (OSError(errno.EMFILE, "Too many"), "ulimit -n"),
        (OSError(errno.ENOENT, "No such file", "there"), "No such file: there"),
        (RuntimeError("I/O error: full (os error 28)"), "no room left for here/x"),
    ],
)
def test_what_cannot_be_written_has_a_name(raised: Exception, words: str) -> None:
    """Whichever library wrote it; its own, where it has one."""
    with pytest.raises(OSError) as found, files.writing(Path("here/x")):
        raise raised
    assert words in files.trouble(found.value)


def test_other_errors_are_let_through() -> None:
    """A mistake in the code is none of the disk's."""
    for wrong in (ValueError("x"), TimeoutError("it takes too long")):
        with pytest.raises(type(wrong)), files.writing(Path("x")):
            raise wrong
