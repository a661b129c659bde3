"""A run directory on its way from the server to whoever submitted the run, as text.

What stays on the server: what central privacy keeps, what simulated clients keep, what W&B
uploads, all checkpoints but the latest, and files that would make the whole larger than `LIMIT`.
"""

import base64
import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from fedlora.errors import UserError
from fedlora.runs import RunDir

PART = 256 * 1024  # bytes of a file in one event
LIMIT = 1 << 30  # bytes in all: the superlink keeps them, and sends them again as one message
STAYS = {"privacy.json", "sampled.json", "noised.safetensors", "clients", "wandb"}


@dataclass(frozen=True)
class Manifest:
    """Files by path below the run directory, with their SHA-256, and those that are too large."""

    files: dict[str, str] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)


def manifest(folder: Path) -> Manifest:
    """What is sent of a run directory: the checkpoint last, as the largest."""
    rounds = RunDir(folder).rounds()
    older = {RunDir(folder).round(n).name for n in rounds[:-1]}
    found = []
    for path in folder.rglob("*"):
        way = path.relative_to(folder).parts
        hidden = any(name.startswith(".") for name in way)
        if path.is_file() and not (path.is_symlink() or hidden or way[0] in STAYS | older):
            found.append((way[0].startswith("round-"), path.relative_to(folder).as_posix()))
    chosen, total = Manifest(), 0
    for _, name in sorted(found):
        size = (folder / name).stat().st_size
        if total + size > LIMIT:
            chosen.left.append(name)
            continue
        total += size
        with (folder / name).open("rb") as file:
            chosen.files[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return chosen


def parts(folder: Path, files: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """The fields of `file` events, in order; an empty file has one part too."""
    for name, sha256 in files.items():
        count = max(1, -(-(folder / name).stat().st_size // PART))
        with (folder / name).open("rb") as file:
            for index in range(count):
                data = base64.b64encode(file.read(PART)).decode("ascii")
                yield {
                    "path": name,
                    "part": index,
                    "parts": count,
                    "sha256": sha256,
                    "data": data,
                }


class Incoming:
    """Files as they arrive, in any order of parts; each is in its place once it is whole."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.expected: Manifest | None = None
        self._got: dict[str, set[int]] = {}
        self._whole: set[str] = set()

    def expect(self, files: Mapping[str, str], left: list[str]) -> None:
        """What will come. Event files of an earlier time are removed: those have it all again."""
        self.expected = Manifest(dict(files), list(left))
        for path in (self.folder / "tensorboard").glob("*"):
            if path.relative_to(self.folder).as_posix() not in files:
                path.unlink()

    def accept(self, path: str, part: int, parts: int, sha256: str, data: str) -> None:
        """One part. Raises UserError for a path that leads out of the run directory."""
        target = self.folder / _checked(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = target.with_name(f".{target.name}.part")
        got = self._got.setdefault(path, set())
        with aside.open("r+b" if got else "wb") as file:
            file.seek(part * PART)
            file.write(base64.b64decode(data))
        got.add(part)
        if len(got) < parts:
            return
        with aside.open("rb") as file:
            whole = hashlib.file_digest(file, "sha256").hexdigest() == sha256
        if whole:
            os.replace(aside, target)
            self._whole.add(path)

    def missing(self) -> list[str]:
        """Files that were promised and are not whole here; what there is of them is removed."""
        for path in self._got.keys() - self._whole:
            target = self.folder / path
            target.with_name(f".{target.name}.part").unlink(missing_ok=True)
        return sorted((self.expected or Manifest()).files.keys() - self._whole)


def _checked(path: str) -> PurePosixPath:
    """The path, which must stay below the run directory and be no hidden file."""
    way = PurePosixPath(path)
    wrong = "\\" in path or ":" in path or way.is_absolute() or not way.parts
    if wrong or any(name.startswith(".") for name in way.parts):
        raise UserError(f"the server sent a file by the name '{path}': it is not written")
    return way
