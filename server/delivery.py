"""A run directory on its way from the server to whoever submitted the run, as text.

What central privacy keeps, what it knows of clients and digests of rows stay on the server. So does
what simulated clients keep, what W&B uploads, and every checkpoint but the latest. Files that would
make the whole larger than `LIMIT`, and those that no run has, are named as left. The configuration
does not travel back: it is the submitter's own word.

Whoever submitted the run takes nothing but the files of one list, of the sizes and digests that it
gives, by the names that a run's files have (nothing that Python or a tool would read where it is
started), and follows no link.
"""

import base64
import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedlora.errors import UserError
from fedlora.runs import MEMORY, SPLIT, RunDir

PART = 256 * 1024  # bytes of a file in one event
LIMIT = 1 << 30  # bytes in all: the superlink keeps them, and sends them again as one message
CONFIG = "config.toml"
STAYS = {"privacy.json", "sampled.json", "noised.safetensors", "clients", "wandb"}
STAYS |= {CONFIG, MEMORY, SPLIT}
# A name in one spelling, on every file system: no dot or space at either end, and no letter that
# has another form.
_REST = r"[A-Za-z0-9 _.,%+=@~()-]{1,200}"
_NAME = rf"(?![. ]){_REST}(?<![. ])"
# The files that a run has: fedlora.runs, server.origin, server.keeping, server.result with
# fedlora.export (and a tokenizer's own), and fedlora.tracking write them.
TAKEN = re.compile(
    r"(run|origin)\.json|metrics\.jsonl|answers\.jsonl|log\.txt|curves\.png"
    rf"|round-[0-9]{{4,9}}/(checkpoint\.json|(state|(sent|update)-{_REST})\.safetensors)"
    rf"|adapter/(additional_chat_templates/)?{_NAME}\.(safetensors|json|jinja|md|model|txt)"
    rf"|tensorboard/events\.out\.tfevents\.{_NAME}"
)


@dataclass(frozen=True)
class File:
    size: int
    sha256: str

    @property
    def parts(self) -> int:
        """How many; an empty file has one part too."""
        return max(1, -(-self.size // PART))


@dataclass(frozen=True)
class Manifest:
    """Files by path below the run directory, and the paths of those that are not sent."""

    files: dict[str, File] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)


def manifest(folder: Path) -> Manifest:
    """What is sent of a run directory: the checkpoint last, as the largest."""
    rounds = RunDir(folder).rounds()
    older = {RunDir(folder).round(n).name for n in rounds[:-1]}
    found = []
    for path in folder.rglob("*"):
        way = path.relative_to(folder).parts
        hidden = any(name.startswith(".") or name in STAYS for name in way)
        if path.is_file() and not (path.is_symlink() or hidden or way[0] in older):
            found.append((way[0].startswith("round-"), path.relative_to(folder).as_posix()))
    chosen, total = Manifest(), 0
    for _, name in sorted(found):
        size = (folder / name).stat().st_size
        if total + size > LIMIT or not TAKEN.fullmatch(name):
            chosen.left.append(name)
            continue
        total += size
        chosen.files[name] = File(size, _sha256(folder / name))
    return chosen


def parts(folder: Path, files: Mapping[str, File]) -> Iterator[dict[str, Any]]:
    """The fields of `file` events, in order."""
    for name, about in files.items():
        with (folder / name).open("rb") as file:
            for index in range(about.parts):
                data = base64.b64encode(file.read(PART)).decode("ascii")
                yield {"path": name, "part": index, "data": data}


class Incoming:
    """Files as they arrive, in any order of parts; each is in its place once it is whole. Until
    then it is in a folder of its own, which `close` removes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.expected: Manifest | None = None
        self._aside = folder / ".incoming"
        self._got: dict[str, tuple[int, set[int]]] = {}  # a number for its file, and its parts
        self._whole: set[str] = set()
        self._given_up: set[str] = set()

    def expect(self, files: Mapping[str, Mapping[str, Any]], left: list[str]) -> None:
        """What will come; heard once. Event files of an earlier time are removed: those have it all
        again. Raises UserError where the list names what may not be written: nothing is taken."""
        if self.expected:
            raise UserError("the server sent a second list of files: it is not used")
        listed = {name: File(**about) for name, about in files.items()}
        if wrong := _wrong(listed):
            raise UserError(f"the server sent a list of files that is not used: {wrong}")
        self._fresh()
        self.expected = Manifest(listed, list(left))
        events = self.folder / "tensorboard"
        for path in [] if events.is_symlink() else events.glob("*"):
            if f"tensorboard/{path.name}" not in files and not path.is_dir():
                path.unlink()

    def accept(self, path: str, part: int, data: str) -> None:
        """One part. Raises UserError for one that is not of the list, or cannot be written: then
        the file is given up."""
        about = self.expected.files.get(path) if self.expected else None
        if about is None:
            raise UserError(f"the server sent a file that is not on its list, '{path}'")
        if path in self._whole | self._given_up:
            return
        try:
            self._write(path, about, part, base64.b64decode(data, validate=True))
        except (OSError, ValueError) as e:
            self._given_up.add(path)
            raise UserError(f"{self.folder / path} is not written: {e}") from None

    def missing(self) -> list[str]:
        """Files that were promised and are not whole here."""
        return sorted((self.expected or Manifest()).files.keys() - self._whole)

    def close(self) -> None:
        """Remove what is not whole."""
        if not self._aside.is_symlink():
            shutil.rmtree(self._aside, ignore_errors=True)

    def _fresh(self) -> None:
        """An empty folder that nobody else had a part in."""
        if self._aside.is_symlink():
            self._aside.unlink()
        self.close()  # of a process that died
        self._aside.mkdir(0o700, parents=True)

    def _write(self, path: str, about: File, part: int, data: bytes) -> None:
        """Raises ValueError for a part that the file does not have."""
        length = min(PART, about.size - part * PART)
        if part >= about.parts or len(data) != length:
            raise ValueError(f"its part {part} is {len(data)} bytes, not {max(0, length)}")
        number, got = self._got.setdefault(path, (len(self._got), set()))
        aside = self._aside / str(number)
        with aside.open("r+b" if got else "xb") as file:
            file.seek(part * PART)
            file.write(data)
        got.add(part)
        if len(got) < about.parts:
            return
        if _sha256(aside) != about.sha256:
            raise ValueError("its digest is another than the one on the list")
        self._place(path, aside)
        self._whole.add(path)

    def _place(self, path: str, aside: Path) -> None:
        *folders, name = path.split("/")
        target = self.folder
        for folder in folders:
            target /= folder
            if target.is_symlink():
                raise ValueError(f"{target} is a link, which is not followed")
            target.mkdir(exist_ok=True)
        os.replace(aside, target / name)  # a link there is replaced itself


def _wrong(files: Mapping[str, File]) -> str:
    """Why no list of files may be like this, or ""."""
    for name in files:
        if not TAKEN.fullmatch(name):
            return f"'{name}' is no name for a file of a run"
    if len({name.casefold() for name in files}) < len(files):
        return "two of its names differ in capitals alone"
    if sum(about.size for about in files.values()) > LIMIT:
        return f"they are more than {LIMIT >> 20} MiB"
    return ""


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
