"""One label a text, by a linear head on a pretrained model.

Shapes: b rows of a batch, t tokens of its longest row (padded), c labels.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from fedlora import cancel, limits
from fedlora.config import Config
from fedlora.data.labelled import NONE
from fedlora.models import pad_with
from fedlora.pretrained import Pretrained
from fedlora.streams import forked
from fedlora.tasks import Kind, heads
from fedlora.tasks.encoded import Encoded, named
from fedlora.tasks.masks import given
from fedlora.weights import Loaded

ROWS = 1024  # tokenised at once, as lists of numbers take many times the memory of tensors
EMPTY = torch.empty(0, dtype=torch.int32)


class Classification:
    """Sequence classification with any model that `AutoModelForSequenceClassification` loads.

    Making one loads the tokenizer only.

    Raises:
        UserError: the model cannot be found, or cannot classify text.
    """

    type = "SEQ_CLS"
    kind: Kind = "labelled"
    learn = "label"
    steady = False
    architecture = AutoModelForSequenceClassification

    def __init__(self, config: Config, labels: Sequence[str]) -> None:
        self.labels = list(labels)
        self.notes: list[str] = []
        self.lacking: set[str] = set()
        self.pretrained = Pretrained(config.model, config.simulation.device)
        self.tokenizer = self.pretrained.tokenizer()
        self.max_length = self.pretrained.longest(config.data.max_length, self.tokenizer)
        self.words = self.pretrained.words

    def model(self, seed: int, stored: bool = False) -> PreTrainedModel:
        """The pretrained model in evaluation mode. A head that the checkpoint lacks, or has for
        other labels, is drawn from `seed`: the same for everyone who has the seed."""
        own = heads.labels(self.pretrained.config())
        with forked(seed, "head"):
            found = self._load(self.labels, stored)
            if found.resized and heads.rows(own, self.labels):
                found = self._load(own, stored)  # with the rows of more labels
            self.lacking = found.lacking
            self.notes = heads.fit(found, own, self.labels) + heads.drawn(found.model)
        model = found.model
        pad_with(model, self.tokenizer.pad_token_id)
        return model

    def _load(self, labels: Sequence[str], stored: bool) -> Loaded:
        return self.pretrained.load(
            self.architecture,
            "text classification",
            stored,
            problem_type="single_label_classification",  # whatever the base was trained for
            **heads.named(labels),
        )

    def encode(self, rows: Dataset) -> Encoded:
        """Tokenise rows with the columns text (str) and label (int), cut at max_length tokens."""
        names = [] if len(rows) else self.tokenizer.model_input_names
        inputs: dict[str, list[Tensor]] = {name: [EMPTY] for name in names}
        lengths: list[int] = []
        labels: list[int] = []
        cut: list[bool] = []
        for some in rows.iter(ROWS):
            labels += some["label"]
            tokens = self.tokenizer(some["text"], truncation=True, max_length=self.max_length)
            lengths += [len(row) for row in tokens["input_ids"]]
            for text, row in zip(some["text"], tokens["input_ids"], strict=True):
                with named(text):
                    limits.check(row, self.words, self.tokenizer)
            # A tokenizer in Python does not tell.
            cut += [bool(row.overflowing) for row in tokens.encodings or ()] or [False] * len(
                some["text"]
            )
            for name, table in tokens.items():
                flat = torch.tensor([x for row in table for x in row], dtype=torch.int32)
                inputs.setdefault(name, []).append(flat)
        return Encoded(
            inputs={name: torch.cat(inputs.pop(name)) for name in list(inputs)},
            starts=np.cumsum([0, *lengths], dtype=np.int64),
            labels=torch.tensor(labels, dtype=torch.int64),
            cut=np.array(cut, dtype=np.bool_),
            rows=np.arange(len(lengths)),
        )

    def blank(self, length: int) -> Encoded:
        """One row of a token that is no padding, with none of the labels. It ends as every row
        does: BART reads where that is."""
        values = {"attention_mask": 1, "input_ids": int(self.tokenizer.pad_token_id == 0)}
        inputs = {
            name: torch.full((length,), values.get(name, 0), dtype=torch.int32)
            for name in self.tokenizer.model_input_names
        }
        for end in self.tokenizer("")["input_ids"][-1:]:
            if end != self.tokenizer.pad_token_id:
                inputs["input_ids"][-1] = end
        return Encoded.row(inputs, label=NONE)

    def batch(self, encoded: Encoded, indices: Sequence[int]) -> dict[str, Tensor]:
        """The rows `indices` (at least one): the model's inputs (b, t) and "labels" (b,), int64."""
        padding = {
            "input_ids": self.tokenizer.pad_token_id or 0,
            "token_type_ids": self.tokenizer.pad_token_type_id,
        }
        inputs, labels = encoded.padded(indices, padding, self.max_length)
        return {**inputs, "labels": labels}

    def counts(self, encoded: Encoded, indices: Sequence[int]) -> Tensor:
        """(b,): one a row."""
        return torch.ones(len(indices), dtype=torch.float64)

    def losses(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """(b,): the cross-entropy of each row, 0 where it has none of the labels."""
        return F.cross_entropy(*self._predict(model, batch), reduction="none")

    def outcomes(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Of each row whether it is right (1 or 0) and its cross-entropy, (b,) each."""
        logits, labels = self._predict(model, batch)
        right = (logits.argmax(dim=1) == labels).float()
        return right, F.cross_entropy(logits, labels, reduction="none")

    def _predict(self, model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(logits (b, c) in fp32, labels (b,)), on the model's device. Every pass through the model
        begins here, and none where nobody waits for it any more."""
        cancel.check()
        inputs = given(batch, model.device, backward=False)
        labels = batch["labels"].to(model.device, non_blocking=True)
        return model(**inputs).logits.float(), labels
