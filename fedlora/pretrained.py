"""A pretrained model's files: its tokenizer, its configuration, its weights as a model."""

from typing import Any, NoReturn

import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from fedlora.config import Model
from fedlora.errors import UserError
from fedlora.models import locate, quiet


class Pretrained:
    """What `model.name` names. Nothing is read until it is asked for.

    Raises:
        UserError: `model.name` is written as a path, and there is no such folder.
    """

    def __init__(self, settings: Model) -> None:
        self.settings = settings
        self.source = locate(settings.name)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, with a padding token. Raises UserError where there is none."""
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.source, **self._files)
        except Exception as error:  # a model's files can be wrong in any way
            self._unusable("tokenizer", error)
        if tokenizer.pad_token is None:  # GPT-2, Llama
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    def config(self) -> PretrainedConfig:
        """The configuration alone. Raises UserError where it cannot be read."""
        try:
            return AutoConfig.from_pretrained(self.source, **self._files)
        except Exception as error:
            self._unusable("configuration", error)

    def model(self, kind: Any, what: str, **arguments: Any) -> PreTrainedModel:
        """The model in fp32 and evaluation mode.

        Args:
            kind: one of Transformers' AutoModelFor….
            what: it is for, as in a message.
            arguments: for `from_pretrained`.

        Raises:
            UserError: the files make no such model.
        """
        try:
            with quiet():
                return kind.from_pretrained(
                    self.source, dtype=torch.float32, **self._files, **arguments
                )
        except Exception as error:
            self._unusable(f"model for {what}", error)

    @property
    def _files(self) -> dict[str, Any]:
        """A folder is loaded without a look at the network; a model's own code is never run."""
        return {
            "local_files_only": not isinstance(self.source, str),
            "trust_remote_code": False,
        }

    def _unusable(self, what: str, error: Exception) -> NoReturn:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{self.settings.name!r} gives no {what} ({reason}). Set model.name to a text model of "
            f"the hub (which needs the network once), or to a folder with config.json, weights and "
            f"tokenizer."
        ) from error
