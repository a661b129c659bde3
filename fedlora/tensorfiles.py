"""Tensors as safetensors files: written in one pass, whole or not at all, and read one at a time.

The format is the library's (an 8-byte length, a JSON header, the values), which reads these files
and writes the same bytes. It is written here so that a digest can be taken of the bytes as they go
to the disk, and no file has to be read again; and read here so that an update needs no open file
while it waits, as there may be more of them than a process may have files.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from fedlora import files
from fedlora.tensors import Tensors

DTYPES = {  # in the order that the library puts them in a file, so that all lie aligned
    "I64": torch.int64,
    "F64": torch.float64,
    "F32": torch.float32,
    "I32": torch.int32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class TensorFile(Mapping[str, Tensor]):
    """The tensors of a safetensors file, in the order of their names: each is read when it is asked
    for, into memory of its own, and not held. `dict(file)` reads them all."""

    def __init__(self, path: Path) -> None:
        """Raises OSError or ValueError where there is no such file, or it is none."""
        self._path = path
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header: dict[str, dict[str, Any]] = json.loads(file.read(length))
        header.pop("__metadata__", None)
        self._start, self._header = 8 + length, dict(sorted(header.items()))

    def __getitem__(self, name: str) -> Tensor:
        about = self._header[name]
        dtype, (begin, end) = DTYPES[about["dtype"]], about["data_offsets"]
        size, at = dtype.itemsize, self._start + begin
        data = np.fromfile(self._path, f"i{size}", (end - begin) // size, offset=at)
        return torch.from_numpy(data).view(dtype).view(about["shape"])

    def __iter__(self) -> Iterator[str]:
        return iter(self._header)

    def __len__(self) -> int:
        return len(self._header)

    def __or__(self, other: Mapping[str, Tensor]) -> Tensors:
        """As a dictionary has it."""
        return {**self, **other}

    def __ror__(self, other: Mapping[str, Tensor]) -> Tensors:
        return {**other, **self}


def save(
    tensors: Mapping[str, Tensor],
    path: Path,
    metadata: dict[str, str] | None = None,
    mode: int = 0o666,
    told: Callable[[memoryview], object] | None = None,
) -> None:
    """Tensors as a safetensors file, written aside and renamed; nothing is left of it where that
    fails, as on a full disk. No more than one tensor is copied at a time, and those that lie in the
    CPU's memory in one piece are not.

    Args:
        mode: who may read and write the file, less the process's umask.
        told: is given the file's bytes piece by piece, such as a hash's `update`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with files.writing(path), os.fdopen(os.open(temporary, flags, mode), "wb") as file:
            for piece in _pieces(tensors, metadata):
                file.write(piece)
                if told:
                    told(piece)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def saved(path: Path) -> tuple[Tensors, dict[str, str]]:
    """The tensors and the metadata that `save` wrote. Raises OSError or SafetensorError."""
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in sorted(file.keys())}, file.metadata() or {}


def _pieces(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None) -> Iterator[memoryview]:
    """The file's bytes."""
    ranks = {dtype: rank for rank, dtype in enumerate(NAMES)}
    order = sorted(tensors, key=lambda name: (ranks[tensors[name].dtype], name))
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name in order:
        tensor = tensors[name]
        begin, end = end, end + tensor.numel() * tensor.element_size()
        about = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape)}
        header[name] = {**about, "data_offsets": [begin, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield memoryview(len(text).to_bytes(8, "little") + text)
    for name in order:
        values = tensors[name].detach().cpu().contiguous().view(-1)
        yield values.view(torch.uint8).numpy().data
