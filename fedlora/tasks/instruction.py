"""Answers to instructions, by a causal language model.

Shapes: b rows of a batch, t tokens of its longest row (padded); N of the b t positions are looked
at, those whose next token is to be learnt.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from fedlora import cancel, limits
from fedlora.config import Config
from fedlora.errors import UserError
from fedlora.models import pad_with, quiet
from fedlora.pretrained import Pretrained
from fedlora.tasks import Kind
from fedlora.tasks.chat import Chat, Messages
from fedlora.tasks.encoded import Encoded, named
from fedlora.tasks.likelihood import IGNORED, likelihood
from fedlora.tasks.masks import given, looks_back


class Instruction:
    """Causal language modelling of conversations with any model that `AutoModelForCausalLM` loads.

    A row's loss is the mean over its targets, in nats a token; it is right to the fraction of them
    that are the likeliest next token. In a mean over rows a row counts as many as it has targets,
    so that the mean is one over tokens; in a private run it counts one, since a row's gradient
    may depend on no other's length.

    Making one loads the tokenizer only.

    Raises:
        UserError: the model or its chat template cannot be used.
    """

    type = "CAUSAL_LM"
    kind: Kind = "conversations"
    architecture = AutoModelForCausalLM
    steady = False

    def __init__(self, config: Config, labels: Sequence[str] = ()) -> None:
        self.labels: list[str] = []
        self.learn = config.data.learn
        self.packing = config.data.packing
        self.by_row = config.privacy.on
        self.backward = False  # whether the model looks back only; known with the model
        self.pretrained = Pretrained(config.model, config.simulation.device)
        self.tokenizer = self.pretrained.tokenizer()
        self.chat = Chat(self.tokenizer, config.model.chat_template)
        self.max_length = self.pretrained.longest(config.data.max_length, self.tokenizer)
        self.words = self.pretrained.words
        self.notes = self._endless()
        self.lacking: set[str] = set()

    def model(self, seed: int, stored: bool = False) -> PreTrainedModel:
        """The pretrained model in evaluation mode; nothing of it is drawn."""
        model = self.pretrained.model(self.architecture, "causal language modelling", stored)
        pad_with(model, self.tokenizer.pad_token_id)
        if not stored:
            self.backward = looks_back(model)
        # Where activations are rounded together, a little of what stands behind comes through.
        if not (stored or self.backward or self.pretrained.settings.quantize):
            raise UserError(
                f"{self.pretrained.settings.name!r} reads what stands behind a token too, so that "
                "it would be given the answers that it is to learn: set model.name to a causal "
                "language model, or is_decoder in its config.json where it has that"
            )
        if self.packing and not _keeps_apart(model):
            raise UserError(
                f"{self.pretrained.settings.name!r} mixes rows that are packed: leave data.packing "
                "out with this model"
            )
        return model

    def encode(self, rows: Dataset) -> Encoded:
        """Tokenise rows with the column messages, cut at max_length tokens."""
        tokens: list[Tensor] = [torch.empty(0, dtype=torch.int32)]
        targets: list[Tensor] = [torch.empty(0, dtype=torch.int32)]
        lengths: list[int] = []
        cut: list[bool] = []
        for messages in rows["messages"]:
            ids, learnt = self._tokens(messages)
            found = torch.tensor(ids[: self.max_length], dtype=torch.int32)
            kept = torch.tensor(learnt[: self.max_length])
            kept[:1] = False  # nothing stands before it to tell it from
            tokens.append(found)
            targets.append(found.where(kept, IGNORED))
            lengths.append(len(found))
            cut.append(len(ids) > self.max_length)
        return Encoded(
            inputs={"input_ids": torch.cat(tokens), "labels": torch.cat(targets)},
            starts=np.cumsum([0, *lengths], dtype=np.int64),
            labels=torch.zeros(len(lengths), dtype=torch.int64),
            cut=np.array(cut, dtype=np.bool_),
            rows=np.arange(len(lengths)),
        )

    def blank(self, length: int) -> Encoded:
        """One row without an answer."""
        token = int(self.tokenizer.pad_token_id == 0)  # one that is no padding
        ids = torch.full((length,), token, dtype=torch.int32)
        return Encoded.row({"input_ids": ids, "labels": torch.full_like(ids, IGNORED)})

    def packed(self, encoded: Encoded) -> Encoded:
        """The rows laid end to end in as few lines of at most max_length tokens as may be, longest
        first. Positions begin anew with each, which Transformers takes for rows of their own."""
        room: list[int] = []
        lines: list[list[int]] = []
        for i in sorted(range(len(encoded)), key=encoded.length, reverse=True):
            length = encoded.length(i)
            line = next((k for k, free in enumerate(room) if length <= free), len(room))
            if line == len(room):
                room.append(self.max_length)
                lines.append([])
            room[line] -= length
            lines[line].append(i)
        order = [i for line in lines for i in line]
        inputs = {k: torch.cat([encoded.tokens(k, i) for i in order]) for k in encoded.inputs}
        positions = [torch.arange(encoded.length(i), dtype=torch.int32) for i in order]
        return Encoded(
            inputs={**inputs, "position_ids": torch.cat(positions)},
            starts=np.cumsum([0, *(self.max_length - free for free in room)], dtype=np.int64),
            labels=torch.zeros(len(lines), dtype=torch.int64),
            cut=np.array([encoded.cut[encoded.rows[line]].any() for line in lines]),
            rows=np.arange(len(lines)),
        )

    def batch(self, encoded: Encoded, indices: Sequence[int]) -> dict[str, Tensor]:
        """The rows `indices` (at least one): the model's inputs, and "labels", the same tokens
        where they are targets and IGNORED elsewhere, each (b, t) int64."""
        padding = {"input_ids": self.tokenizer.pad_token_id or 0, "labels": IGNORED}
        inputs, _ = encoded.padded(indices, padding, self.max_length)
        if "position_ids" in inputs:  # by which packed rows are told apart, if there is no mask
            return inputs
        lengths = torch.tensor([encoded.length(i) for i in indices])
        width = inputs["input_ids"].shape[1]
        inputs["attention_mask"] = (torch.arange(width) < lengths[:, None]).long()
        return inputs

    def counts(self, encoded: Encoded, indices: Sequence[int]) -> Tensor:
        """(b,): a row's targets; under privacy one, whatever is in the row."""
        if self.by_row:
            return torch.ones(len(indices), dtype=torch.float64)
        targets = encoded.inputs["labels"]
        rows = encoded.rows[list(indices)]
        spans = zip(encoded.starts[rows], encoded.starts[rows + 1], strict=True)
        found = [int((targets[start:end] != IGNORED).sum()) for start, end in spans]
        return torch.tensor(found, dtype=torch.float64)

    def losses(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """(b,): the mean cross-entropy of each row's targets; 0 where it has none."""
        losses, _ = self._means(model, batch)
        return losses

    def outcomes(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Of each row the fraction of targets that are likeliest, and their mean cross-entropy,
        (b,) each."""
        losses, right = self._means(model, batch)
        return right, losses

    def _endless(self) -> list[str]:
        """That answers have no end, if the template writes none."""
        try:
            if self.chat.closing() is not None:
                return []
        except UserError:  # it takes no conversation of one answer; the rows may be others
            return []
        return [
            "the chat template has no token that ends an answer: the model learns no end, "
            "and its answers are cut at generate.max_new_tokens"
        ]

    def _tokens(self, messages: Messages) -> tuple[list[int], list[bool]]:
        with named(" ".join(message["content"] for message in messages)):
            ids, learnt = self.chat.tokens(messages, everything=self.learn == "all")
            limits.check(ids[: self.max_length], self.words, self.tokenizer)
        return ids, learnt

    def _means(self, model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(b,) each: of a row's targets the mean cross-entropy and the share that are likeliest.
        Every pass through the model begins here, and none where nobody waits for it any more."""
        cancel.check()
        inputs = given(batch, model.device, self.backward)
        targets = F.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED)  # (b, t)
        learnt = targets != IGNORED
        looked = learnt.clone()
        if self.steady:
            looked[:, :-1] = True
        if not looked.any():  # rows whose answers were all cut off
            looked[0, 0] = True
        column, row = looked.T.nonzero(as_tuple=True)  # (N,) each
        where, tokens, counts = (
            t.to(model.device, non_blocking=True)
            for t in (
                row * targets.shape[1] + column,
                targets[row, column],
                learnt.sum(dim=1).clamp(min=1),
            )
        )
        found = likelihood(model, inputs, where, tokens)
        losses, right = (_spread(x.to(found[0]), where, targets.shape) / counts for x in found)
        return losses, right


def _spread(values: Tensor, where: Tensor, shape: torch.Size) -> Tensor:
    """(b,): the sum by row of values (N,) at their places in a table (b, t)."""
    table = values.new_zeros(shape.numel()).index_copy(0, where, values)
    return table.view(shape).sum(dim=1)


@torch.inference_mode()
def _keeps_apart(model: PreTrainedModel) -> bool:
    """Whether a row that is packed behind another is read as it is alone: it is tried."""
    words: Any = model.get_input_embeddings()
    ids = torch.arange(8, device=model.device)[None] % words.num_embeddings
    positions = torch.arange(4, device=model.device).repeat(2)[None]
    with quiet():
        together = model(input_ids=ids, position_ids=positions, use_cache=False).logits[:, 4:]
        alone = model(input_ids=ids[:, 4:], use_cache=False).logits
    return torch.allclose(together, alone, rtol=1e-2, atol=1e-2 * float(alone.abs().max()))
