"""The folder that a pretrained model is read from, looked at before any library reads it.

Whoever made a model wrote its files, and libraries do much of what these say: load another model
from a local path, read weights from beside the folder, unpickle, fetch code. So a model of the hub
is a folder here too, its snapshot, in which nothing is but settings, tokenizer, terms of use and
safetensors; and a folder, wherever it is from, is refused where its files lead out of it.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import constants, snapshot_download
from safetensors import SafetensorError, safe_open

from fedlora import mistaken
from fedlora.errors import UserError

# Of a repository's first level; nothing else of it is ever on this disk.
SETTINGS = ["*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken"]
TERMS = ["LICEN[CS]E*", "NOTICE*", "COPYING*", "USE_POLICY*"]
WEIGHTS = ["*.safetensors"]
NEVER = ["*/*", "consolidated*"]  # copies in other formats
INDEX = "*.index.json"  # which file each weight is in


def snapshot(name: str, revision: str, weights: bool) -> Path:
    """The folder of a hub model's files at one commit, from the hub or its cache.

    Raises whatever the hub raises where it has none.
    """
    patterns = [*SETTINGS, *TERMS, *(WEIGHTS if weights else [])]
    return Path(
        snapshot_download(
            name,
            revision=revision,
            allow_patterns=patterns,
            ignore_patterns=NEVER,
            local_files_only=constants.HF_HUB_OFFLINE,
        )
    )


def verify(folder: Path, name: str) -> None:
    """Raises UserError, for the model of this name, where its files lead out of the folder, or to
    code; or where they are no model's."""
    if (wrong := next(_faults(folder), None)) is not None:
        raise UserError(f"the model {name!r} is refused: {wrong}")


def described(folder: Path, name: str) -> None:
    """Raises UserError where a folder has no settings of a model: what it is instead."""
    if not (folder / "config.json").is_file():
        raise UserError(f"model.name = {name!r} {mistaken.folder(folder)}")


def _faults(folder: Path) -> Iterator[str]:
    if adapter := mistaken.adapter(folder):
        yield adapter
    settings = _table(folder / "config.json")
    named = {"config.json": [settings.get("transformers_weights")]}
    for path in sorted(folder.glob(INDEX)):
        named[path.name] = sorted(set(_table(_table(path).get("weight_map")).values()), key=str)
    for where, names in named.items():
        for name in names:
            if name is not None and not _own(name):
                yield f"{where} names weights in {name!r}, no safetensors file of its own folder"
    for key, value in _fetched(settings):
        yield f"config.json has {key} = {value!r}, which is code of the hub: take it out"
    for key, value in _table(folder / "tokenizer_config.json").items():
        if value and (key == "init_inputs" or _outside(folder, key, value)):
            yield (
                f"tokenizer_config.json has {key} = {value!r}, which can lead to a file outside of "
                "its folder: take it out"
            )


def weighed(folder: Path, name: str) -> None:
    """Raises UserError where the folder has no weights in a format that cannot run, or not whole
    files of them."""
    if not any(folder.glob("*.safetensors")):
        others = mistaken.formats(folder)
        raise UserError(
            f"{name!r} has no weights in safetensors ({others or 'none at all'}). Other formats, "
            "such as pytorch_model.bin, are pickles, which can run code, and are not opened: "
            "convert the file once where you trust it, by "
            "AutoModel.from_pretrained(…).save_pretrained(…), which writes model.safetensors, or "
            "choose another model.revision"
        )
    if (wrong := next(_broken(folder), None)) is not None:
        raise UserError(
            f"of the weights of {name!r}, in {folder}, {wrong}: fetch the model's files again, "
            "whole (with git, by git lfs pull)"
        )


def _broken(folder: Path) -> Iterator[str]:
    """What is wrong with the files of weights, as far as their first bytes and sizes tell."""
    for path in sorted(folder.glob(INDEX)):
        for name in sorted(set(_table(_table(path).get("weight_map")).values())):
            if not (folder / name).exists():
                yield f"{name}, of which {path.name} says that weights are in it, is not there"
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with path.open("rb"), safe_open(path, "pt"):
                pass
        except PermissionError as e:
            yield f"{path.name} cannot be read ({e.strerror})"
        except (SafetensorError, OSError) as e:
            size = path.stat().st_size
            yield f"{path.name} ({size:,} bytes) is cut short or damaged ({e})"


def _own(name: object) -> bool:
    """Whether this is a file of the folder itself, and no pickle."""
    safe = (".safetensors", ".safetensors.index.json")
    return isinstance(name, str) and Path(name).name == name and name.endswith(safe)


def _outside(folder: Path, key: str, value: object) -> bool:
    """Whether a setting names a file that is there, and none of the folder's."""
    if not key.endswith("_file") or not isinstance(value, str):
        return False
    places = [path.resolve() for path in (Path(value), folder / value)]
    return any(p.exists() and not p.is_relative_to(folder.resolve()) for p in places)


def _fetched(settings: Any) -> Iterator[tuple[str, str]]:
    """What of the settings, however deep, names an implementation that is fetched from the hub."""
    for key, value in settings.items() if isinstance(settings, dict) else []:
        texts = value.values() if isinstance(value, dict) else [value]
        if key.endswith("_implementation"):
            yield from ((key, text) for text in texts if isinstance(text, str) and "/" in text)
        for inner in value if isinstance(value, list) else [value]:
            yield from _fetched(inner)


def _table(source: Any) -> dict[str, Any]:
    """The table that this is, or that a JSON file holds; an empty one where it is none."""
    if isinstance(source, Path):
        try:
            source = json.loads(source.read_text("utf-8")) if source.is_file() else {}
        except (OSError, ValueError) as e:
            raise UserError(f"{source.name} cannot be read ({e})") from None
    return source if isinstance(source, dict) else {}
