"""GGUF files, turned into ordinary folders of safetensors once for every process of this machine.

    <hub's cache>/fedlora/<digest of the file>/      config.json, weights in fp32, tokenizer

Transformers reads a GGUF file by turning all its weights back into fp32, whatever is asked of it,
which takes long and gives every process weights of its own. A folder's are mapped, and all who map
it share their pages.
"""

import hashlib
import os
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, hf_hub_download
from transformers import AutoModelForCausalLM, AutoTokenizer

from fedlora import weights
from fedlora.config import Model
from fedlora.errors import UserError
from fedlora.models import quiet

MADE = 2  # how a folder is made of a file: the first way could draw weights


def chosen(source: str | Path, settings: Model) -> Path | None:
    """The GGUF file that a model is in; None where it is in ordinary files.

    Args:
        source: where the model is, as `fedlora.models.locate` says.

    Raises:
        UserError: there is no such file, or several to choose from.
    """
    if isinstance(source, str):
        return _downloaded(source, settings) if settings.gguf else None
    there = sorted(source.glob("*.gguf"))
    if settings.gguf:
        if (path := source / settings.gguf).is_file():
            return path
        raise UserError(
            f"there is no {path}. Correct model.gguf: {source} has {_listed(there) or 'none'}."
        )
    if (source / "config.json").is_file() or not there:
        return None
    if len(there) > 1:
        raise UserError(f"{source} has several GGUF files: set model.gguf to {_listed(there)}.")
    return there[0]


def converted(path: Path) -> Path:
    """The folder made of a GGUF file; made now where nobody has yet.

    Raises:
        UserError: the package `gguf` is missing, the cache cannot be written, or the file lacks
            weights.
        Exception: whatever Transformers makes of a file that it cannot read.
    """
    folder = place(path)
    if folder.is_dir():
        return folder
    needed()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise UserError(
            f"{path.name} cannot be turned into a folder in {folder.parent} ({error}): set HF_HOME "
            "to a folder that can be written"
        ) from None
    try:
        _convert(path, aside)
        os.replace(aside, folder)
    except OSError:
        if not folder.is_dir():  # else another process was first, with the same
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def place(path: Path) -> Path:
    """Where the folder made of a GGUF file is, or would be."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Path(constants.HF_HOME) / "fedlora" / f"{digest[:32]}-{MADE}"


def needed() -> None:
    """Raises UserError where the package that reads GGUF files is missing."""
    if find_spec("gguf") is None:
        raise UserError("GGUF files need the package gguf: pip install 'fedlora[llm]'")


def _convert(path: Path, folder: Path) -> None:
    source: dict[str, Any] = {
        "pretrained_model_name_or_path": path.parent,
        "gguf_file": path.name,
        "local_files_only": True,
        "trust_remote_code": False,
    }
    how: dict[str, Any] = {"dtype": torch.float32, "use_safetensors": True, **weights.TOLD}
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
    with quiet():
        loaded: Any = AutoModelForCausalLM.from_pretrained(**source, **how)
        model, told = loaded
        weights.loaded(model, told, path.name)
        # Its weights are ordinary by now; only the marks are left, and would be saved.
        del model.config.quantization_config
        model.hf_quantizer, model.is_quantized = None, False
        model.save_pretrained(folder)


def _downloaded(name: str, settings: Model) -> Path:
    assert settings.gguf is not None
    try:
        return Path(hf_hub_download(name, settings.gguf, revision=settings.revision))
    except Exception as error:  # the hub's, or the network's
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{name!r} gives no file {settings.gguf} ({reason}). Correct model.name, model.gguf "
            "or model.revision; the hub needs the network once."
        ) from None


def _listed(paths: list[Path]) -> str:
    return ", ".join(path.name for path in paths)
