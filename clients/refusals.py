"""What a node tells of what its owner does not allow, and whose files model and template are.

What a tokenizer, a template or a model does with a row can be a question about it, and whether it
fails the answer. So a template is never the run's, and under a budget neither are the others.
"""

import hashlib
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedlora.errors import UserError

if TYPE_CHECKING:
    from clients.owner import Owner
    from fedlora.config import Config

COLUMNS = ("text", "label", "prompt", "context", "response")  # the owner's to choose


class Refused(UserError):
    """A run asks for what the owner does not allow, or for what nobody can do. Says what was asked
    for, and nothing of rows or this machine, so the server may be told in any run."""


def refused(key: str, allowed: str, asked: object) -> Refused:
    return Refused(
        f"this node's owner allows {allowed}; the run asks for {asked}. Change the run, or ask the "
        f"owner for another {key}."
    )


def rows(owner: "Owner", config: "Config") -> None:
    """Raises Refused where a run chooses whose rows, or which of their columns."""
    from fedlora.data.sources import BUNDLED

    data = config.data
    if owner.data is None and data.name not in BUNDLED:
        raise refused("data", "bundled data alone", f"data.name = {data.name}")
    for key in COLUMNS:
        asked = getattr(data, key)
        if owner.data is not None and getattr(owner, key) is None and asked not in (key, None):
            raise refused(key, f"the column {key!r} alone", f"data.{key} = {asked}")


def place(owner: "Owner", name: str) -> None:
    """Raises Refused where a run's model could be a folder of this machine."""
    from fedlora.config import MINILM

    organisation, _, model = name.partition("/")
    hub = all(_plain(part) for part in (organisation, model)) and not Path(name).exists()
    if owner.model is None and name != MINILM and not hub:
        raise refused("model", "models of the hub alone", f"model.name = {name}")


def template(owner: "Owner", asked: str | None) -> None:
    """Raises Refused where a run's chat template is none that the owner chose."""
    if asked is not None and asked != owner.template:
        digest = hashlib.sha256(asked.encode()).hexdigest()
        raise refused(
            "chat-template",
            "the chat template of its own settings, or else the model's, alone",
            f"model.chat_template of SHA-256 {digest}",
        )


def targets(config: "Config") -> None:
    """Raises Refused where a run chooses layers by a pattern, whose search may never end."""
    asked = config.adapter.target_modules
    if isinstance(asked, str) and asked != "all-linear":
        raise Refused(
            "a node takes adapter.target_modules as a list of names, or 'all-linear'; the run asks "
            "for a pattern. Name the layers."
        )


def private(owner: "Owner", config: "Config") -> None:
    """Raises Refused where a run is not as private as an owner's budget asks for."""
    if not config.privacy.local:
        asked = "central noise" if config.privacy.central else "none (privacy.epsilon is unset)"
        raise refused("epsilon", "training by local DP-SGD alone", asked)
    if config.privacy.insecure_seed is not None:
        raise refused("epsilon", "secret noise alone", "privacy.insecure_seed")
    if config.data.rows is not None:
        raise refused("epsilon", "all of its rows alone", f"data.rows = {config.data.rows}")
    if _tells_labels(owner, config):
        raise Refused(
            "this node's owner has a budget (epsilon), under which the labels of its rows are told "
            'to nobody: name them in the run, as in data.labels = ["bad", "good"]'
        )
    _files(owner, config)


def _tells_labels(owner: "Owner", config: "Config") -> bool:
    """Whether the labels to agree on would be those that this owner's rows happen to have."""
    from fedlora import tasks
    from fedlora.data.sources import BUNDLED

    labelled = tasks.load(config.model.task).kind == "labelled"
    return labelled and owner.data not in BUNDLED and config.data.labels is None


def _files(owner: "Owner", config: "Config") -> None:
    from fedlora.models import packaged

    given = config.model
    if owner.model is not None:
        chosen = bool(owner.revision or is_folder(owner.model) or packaged(owner.model))
    else:
        ours = given.revision is None and given.gguf is None
        chosen = ours and packaged(given.name) is not None
    if not chosen:
        asked = {"name": given.name, "revision": given.revision, "gguf": given.gguf}
        raise refused(
            "model (a folder, or a name of the hub with revision)",
            "under a budget a model of its own alone, or one that an installed package holds",
            ", ".join(f"model.{key} = {value}" for key, value in asked.items() if value),
        )


def shares(owner: "Owner", config: "Config") -> None:
    """Raises Refused where a base in this format cannot be shared out to the node's devices."""
    if owner.parallel == "fsdp" and config.model.quantize == "8bit":
        raise refused("parallel", "bases that can be cut into shares", "model.quantize = 8bit")


def text(template: Path) -> str:
    """What is in a chat template's file. Raises UserError where it cannot be read."""
    try:
        return template.expanduser().read_text("utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"chat-template: {template} cannot be read ({e})") from None


def is_folder(model: str) -> bool:
    """Whether an owner means a folder, and no name of the hub."""
    return model.startswith(("/", ".", "~")) or Path(model).is_dir()


def _plain(part: str) -> bool:
    """Whether it can be half of a hub name, and no step of a path."""
    return part[:1].isalnum() and all(c.isalnum() or c in "._-" for c in part)


def line(error: Any, known: Sequence[str]) -> str:
    """What pydantic finds wrong with a setting, in words; `known` are all there are."""
    message = str(error["msg"]).removeprefix("Value error, ")
    if not error["loc"]:
        return message
    key = str(error["loc"][0])
    if error["type"] != "extra_forbidden":
        return f"{key} = {error['input']!r}: {message}"
    near = get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    return f"{key}: no such key{hint} (known: {', '.join(known)})"
