"""A table of tokens as a file that every process of a machine maps and none copies.

    <folder>/tokens-<key>.safetensors    inputs, starts and labels of all rows

The key says what the tokens depend on, so a file that is there and whole is never out of date.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from safetensors import SafetensorError

from fedlora.models import tokenizer_digest
from fedlora.tasks.encoded import Encoded
from fedlora.tensorfiles import save, saved
from fedlora.views import fingerprint, manifest


def key(task: Any, rows: Dataset) -> str:
    """32 hexadecimal digits that differ where the rows' tokens would."""
    hasher = hashlib.blake2b(digest_size=16)
    hasher.update(f"{type(task).__name__} {task.max_length} {task.labels} {task.learn}\n".encode())
    hasher.update(tokenizer_digest(task.tokenizer).encode())
    for some in rows.iter(1024):
        hasher.update(json.dumps(some, sort_keys=True).encode())
    return hasher.hexdigest()


def mapped(folder: Path, key: str, make: Callable[[], Encoded]) -> Encoded:
    """The whole table, from its file; who finds none there, or one that is not what it should be,
    makes it. Its pages are the file's, which the system keeps once for all processes."""
    path = folder / f"tokens-{key}.safetensors"
    if (table := _read(path, key)) is None:
        _write(path, key, make())
        table = _read(path, key)
        assert table is not None, f"{path} is not what was written"
    return table


def _write(path: Path, key: str, table: Encoded) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {f"inputs.{name}": tokens for name, tokens in table.inputs.items()}
    tensors |= {k: torch.from_numpy(getattr(table, k)) for k in ("starts", "cut")}
    tensors["labels"] = table.labels
    save(tensors, path, {"key": key, "digest": fingerprint(manifest(tensors))})


def _read(path: Path, key: str) -> Encoded | None:
    """None where there is no such file, or where it is another's or damaged."""
    try:
        tensors, told = saved(path)
    except (OSError, SafetensorError):
        return None
    if told != {"key": key, "digest": fingerprint(manifest(tensors))}:
        return None
    starts, cut = (tensors.pop(k).numpy() for k in ("starts", "cut"))
    labels = tensors.pop("labels")
    inputs = {name.removeprefix("inputs."): tokens for name, tokens in tensors.items()}
    return Encoded(inputs, starts, labels, cut, np.arange(len(labels)))
