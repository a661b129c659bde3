"""A pretrained model's files: its tokenizer, its configuration, its weights as a model."""

from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from fedlora import gguf, limits, modelfiles, quantised, weights
from fedlora.config import Model
from fedlora.device import DTYPES
from fedlora.errors import UserError
from fedlora.models import locate, quiet

# Nothing of the network, no model's own code, and of weights none that are a pickle.
SAFE: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
WHOLE = {**SAFE, "use_safetensors": True}


class Pretrained:
    """What `model.name` names. Nothing is read until it is asked for.

    Raises:
        UserError: see `fedlora.models.locate`.
    """

    def __init__(self, settings: Model, device: str = "cpu") -> None:
        """
        Args:
            device: on which a quantised model is made; others are made on the CPU.
        """
        self.settings = settings
        self.device = device
        self._place = locate(settings.name, settings.revision)

    @cached_property
    def source(self) -> Path:
        """The folder that the model is read from: of the hub, its snapshot; of a GGUF file, what it
        was turned into."""
        file = gguf.chosen(self._place, self.settings)
        if file:
            modelfiles.verify(file.parent, self.settings.name)
            return gguf.converted(file)
        if isinstance(self._place, Path):
            return self._described
        return modelfiles.snapshot(self._place, self._described.name, weights=True)

    @property
    def folders(self) -> list[Path]:
        """The folders whose files are this model's: that of a GGUF file too, which may have a
        licence beside it."""
        file = gguf.chosen(self._place, self.settings)
        return [*([file.parent] if file else []), self.source]

    @cached_property
    def _described(self) -> Path:
        """The folder with the settings and the tokenizer at least: of the hub, one commit's."""
        place = self._place
        if isinstance(place, str):
            place = modelfiles.snapshot(place, self.settings.revision or "main", weights=False)
        modelfiles.verify(place, self.settings.name)
        modelfiles.described(place, self.settings.name)
        return place

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, with a token that pads rows and one that ends a text, where it or the
        model knows any. Raises UserError where there is no tokenizer."""
        try:
            file = gguf.chosen(self._place, self.settings)
            folder = self.source if file else self._described
            tokenizer = AutoTokenizer.from_pretrained(folder, **SAFE)
        except Exception as error:  # a model's files can be wrong in any way
            self._unusable("tokenizer", error)
        config = self.config()
        if (end := limits.ending(config, tokenizer)) is not None:
            tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
        pad = limits.padding(config, tokenizer)  # GPT-2 and Llama have none of their own
        tokenizer.pad_token = None if pad is None else tokenizer.convert_ids_to_tokens(pad)
        return tokenizer

    def config(self) -> PretrainedConfig:
        """The configuration alone, for which a GGUF file is not turned into weights. Raises
        UserError where it cannot be read."""
        try:
            file = gguf.chosen(self._place, self.settings)
            if file and not gguf.place(file).is_dir():
                gguf.needed()
                modelfiles.verify(file.parent, self.settings.name)
                return AutoConfig.from_pretrained(file.parent, gguf_file=file.name, **SAFE)
            folder = self.source if file else self._described
            return AutoConfig.from_pretrained(folder, **SAFE)
        except Exception as error:
            self._unusable("configuration", error)

    def longest(self, asked: int, tokenizer: PreTrainedTokenizerBase) -> int:
        """Tokens of the longest row: as many as are asked for, where tokenizer and model go so
        far."""
        return limits.longest(asked, self.config(), tokenizer)

    @property
    def words(self) -> int | None:
        """How many tokens the model has embeddings of."""
        return limits.words(self.config())

    def model(self, kind: Any, what: str, stored: bool = False) -> PreTrainedModel:
        """What `load` loads."""
        return self.load(kind, what, stored).model

    def load(self, kind: Any, what: str, stored: bool = False, **arguments: Any) -> weights.Loaded:
        """The model in evaluation mode and the settings' format, fp32 where they leave it open, and
        what was drawn of it.

        Args:
            kind: one of Transformers' AutoModelFor….
            what: it is for, as in a message.
            stored: in the format that it is stored in, where no two can differ in rounding.
            arguments: for `from_pretrained`.

        Raises:
            UserError: the files make no such model, or lack some of its weights.
        """
        try:
            how = {"dtype": "auto"} if stored else self._format(kind)
            name = self.settings.name
            modelfiles.weighed(self.source, name)
            with quiet():
                model, told = kind.from_pretrained(
                    self.source, **how, **WHOLE, **weights.TOLD, **arguments
                )
            found = weights.loaded(_steady(model), told, name)
            if not stored:
                weights.finite(model, name)
            return found
        except Exception as error:
            self._unusable(f"model for {what}", error)

    def _format(self, kind: Any) -> dict[str, Any]:
        dtype = DTYPES.get(self.settings.dtype, torch.float32)
        if self.settings.quantize is None:
            return {"dtype": dtype}
        quantised.needed()
        with torch.device("meta"):
            whole = weights.trained_whole(kind.from_config(self.config()))
        how = BitsAndBytesConfig(
            load_in_8bit=self.settings.quantize == "8bit",
            load_in_4bit=self.settings.quantize == "4bit",
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=whole or None,  # by default a language model's output layer
        )
        place = {"": self.device}
        return {"dtype": dtype, "quantization_config": how, "device_map": place}

    def _unusable(self, what: str, error: Exception) -> NoReturn:
        if isinstance(error, UserError):
            raise error
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{self.settings.name!r} gives no {what} ({reason}). Set model.name to a text model of "
            f"the hub (which needs the network once), or to a folder with config.json, weights and "
            f"tokenizer."
        ) from error


def _steady(model: Any) -> PreTrainedModel:
    """On a CPU bitsandbytes would pack 4-bit weights anew, in place, whenever it evaluates."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model
