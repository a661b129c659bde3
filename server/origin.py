"""What a run began with: who goes on with it, or uses what it learnt, has the same, or is told.

    origin.json    settings, and what every node agrees on: labels, base, tokenizer, version
    split.json     digests of the rows and of who has which

A plain digest of a few rows would let whoever reads it test a guess at them. So these have a key,
in the same file, which its owner alone may read and which stays where the run was served.
"""

import hashlib
import json
import secrets
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedlora import files, settings
from fedlora.agreement import differences
from fedlora.config import Config
from fedlora.data import Federation
from fedlora.errors import UserError
from fedlora.resident import Resident
from fedlora.runs import SPLIT, RunDir
from fedlora.untrusted import plain
from server.agreement import known

ORIGIN = "origin.json"
# What may change: how long a run goes on, where, on what machine, who watches; and what is compared
# by itself, wherever it is: the model and its format, the rows.
SECTIONS = {"simulation", "generate"}
FREE = {f"run.{name}" for name in ("rounds", "dir", "name", "keep", "track", "deadline")}
FREE |= {f"model.{name}" for name in ("name", "revision", "gguf", "dtype", "quantize")}
FREE |= {"data.name"}
ANEW = "or start a new run"
KINDS = {
    "rows": "rows",
    "test": "the server's test rows",
    "public": "the server's public rows",
    "split": "which client has which rows",
}

Scalar = bool | int | float | str
M = TypeVar("M", bound=BaseModel)


class Origin(BaseModel):
    """What `origin.json` holds."""

    model_config = ConfigDict(strict=True)
    version: str
    labels: list[str]
    base: str
    format: str
    tokenizer: str
    settings: dict[str, Scalar]


class Split(BaseModel):
    """What `split.json` holds: of each of KINDS how many rows these are, and their digest."""

    model_config = ConfigDict(strict=True)
    key: str = Field(pattern="^[0-9a-f]{64}$")
    counts: dict[str, int]
    digests: dict[str, str]


def begin(folder: Path, resident: Resident) -> None:
    """Note in a folder what a run there begins with."""
    split = _split(resident.federation, secrets.token_hex(32))
    files.write(folder / SPLIT, split.model_dump_json(), 0o600)
    origin = Origin(**known(resident), settings=fixed(resident.config))
    files.write(folder / ORIGIN, origin.model_dump_json())


def begun(run: RunDir, resident: Resident) -> list[str]:
    """Note what a run begins with; of one that has begun, `check` it."""
    if run.rounds():
        return check(run.path, resident, resident.config)
    begin(run.path, resident)
    return []


def read(folder: Path) -> Origin | None:
    """What a run in this folder began with; None where that was not noted."""
    return _read(folder / ORIGIN, Origin)


def check(
    folder: Path,
    resident: Resident,
    config: Config,
    otherwise: str = ANEW,
    kinds: Collection[str] = tuple(KINDS),
) -> list[str]:
    """Whether all is as it was when the run in this folder began. What is not known, or may matter,
    in words.

    Args:
        config: the run's, with nothing laid over it.
        otherwise: what else there is to do than to put back rows that were there.
        kinds: of rows, those that have to be the same.

    Raises:
        UserError: something else is there; what, and the way out.
    """
    origin, split = read(folder), _read(folder / SPLIT, Split) if kinds else None
    if origin is None:
        return [
            f"{folder} does not say what the run began with, as one of an earlier version: whether "
            "the base and the rows are still the same is not known"
        ]
    now = known(resident)
    wrong = [*differences(origin.model_dump(), {**now, "version": origin.version})]
    wrong += _changed(origin.settings, fixed(config))
    way = ANEW if wrong else otherwise
    if split:
        wrong += _moved(split, _split(resident.federation, split.key), kinds)
    version = ""
    if origin.version != now["version"]:
        version = f"it began with fedlora {plain(origin.version)}, and this is {now['version']}"
    if wrong:
        raise UserError(
            f"{folder.name} began with something else than is there now: "
            f"{'; '.join([*wrong, *filter(None, [version])])}. Put back what was there "
            f"(model.name = {config.model.name}, data.name = {config.data.name}, "
            f"settings: {folder}), {way}"
        )
    notes = [f"{folder.name}: {version}, so numbers may differ"] if version else []
    if kinds and split is None:
        notes.append(
            f"{folder} has no {SPLIT}, which stays where the run was served: whether the rows here "
            "are the run's is not known"
        )
    return notes


def fixed(config: Config) -> dict[str, Scalar]:
    """The settings that a run keeps to its end."""
    flat = settings.to_flat(config)
    return {k: v for k, v in flat.items() if k not in FREE and k.split(".")[0] not in SECTIONS}


def _changed(before: dict[str, Scalar], now: dict[str, Scalar]) -> Iterable[str]:
    """What of the settings that both know is otherwise."""
    for key in sorted(before.keys() & now.keys()):
        if before[key] != now[key]:
            yield f"{key} = {plain(now[key], 60)} in place of {plain(before[key], 60)}"


def _moved(before: Split, now: Split, kinds: Collection[str]) -> Iterable[str]:
    """Which of these kinds of rows are others."""
    for kind in kinds:
        if before.digests.get(kind) == now.digests[kind]:
            continue
        was, are = before.counts.get(kind), now.counts[kind]
        counted = f", {are} in place of {was}" if was != are else ""
        yield f"{KINDS[kind]} {'differs' if kind == 'split' else 'are others'}{counted}"


def _split(federation: Federation, key: str) -> Split:
    """Digests of all rows with their labels, in order, and of what came of dividing them."""
    found = {kind: getattr(federation, kind) for kind in ("rows", "test", "public")}
    digests = {kind: _digest(key, rows.iter(1024)) for kind, rows in found.items()}
    owned = [[federation.trained[c], federation.held[c]] for c in federation.clients]
    digests["split"] = _digest(key, [federation.clients, owned])
    counts = {kind: len(rows) for kind, rows in found.items()}
    counts["split"] = sum(len(rows) for both in owned for rows in both)
    return Split(key=key, counts=counts, digests=digests)


def _digest(key: str, parts: Iterable[Any]) -> str:
    hasher = hashlib.blake2b(key=bytes.fromhex(key), digest_size=16)
    for part in parts:
        hasher.update(json.dumps(part, sort_keys=True).encode() + b"\n")
    return hasher.hexdigest()


def _read(path: Path, kind: type[M]) -> M | None:
    """Raises UserError where the file is damaged."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as e:
        first = e.errors(include_url=False, include_input=False, include_context=False)[0]
        said = plain(f"{'.'.join(map(str, first['loc']))}: {first['msg']}")
        raise UserError(
            f"{path} is damaged ({said}): restore it, or remove it to go without the comparison"
        ) from None
