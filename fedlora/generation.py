"""Answers of a causal language model: to many prompts at once, or to one as it is written.

Shapes: b prompts of a batch, t tokens of its longest (padded on the left, so that every answer
begins at the same place), v words of the vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
    TextStreamer,
    TopPLogitsWarper,
)

from fedlora import limits, pieces
from fedlora.config import Generate
from fedlora.errors import UserError
from fedlora.evaluation import evaluating
from fedlora.models import quiet
from fedlora.tasks.chat import Chat, Messages

# A step reads every weight for one token a row, so that more rows are nearly free; what bounds them
# is the memory of the tokens before: of Llama-3-8B in bf16 each has 2 · 32 · 8 · 128 numbers, so
# that these take 1.1 GB.
TOGETHER = pieces.Costs(fixed=1024, most=8192)


class Speaker:
    """A model that answers conversations through its chat template.

    Args:
        model: a causal language model, with or without PEFT around it.
        tokenizer: with its template.
    """

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, settings: Generate) -> None:
        self.model = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.chat, self.settings = Chat(tokenizer, None), settings
        own = self.model.generation_config.eos_token_id
        self.ends = sorted({*self.chat.ends(), *(own if isinstance(own, list) else [own])} - {None})
        self.words = limits.words(self.model.config)
        context = limits.longest(2**31, self.model.config, tokenizer)
        self.room = context - settings.max_new_tokens  # tokens that a prompt may have

    def fits(self, messages: Messages) -> bool:
        """Whether the model's context has room for the conversation and an answer."""
        return len(self.chat.prompt(messages)) <= self.room

    def answers(self, talks: Sequence[Messages], draws: Sequence[torch.Generator]) -> list[str]:
        """The next turn of each conversation.

        Args:
            draws: a stream for each, of which nothing is drawn at temperature 0. What is drawn
                depends on no other conversation, but that logits are rounded otherwise in other
                company, which can tip a token.

        Raises:
            UserError: a conversation leaves no room for an answer.
        """
        prompts = [self._checked(messages) for messages in talks]
        found = [""] * len(talks)
        for piece in self._together(prompts):
            texts = self._generate([prompts[i] for i in piece], [draws[i] for i in piece])
            for i, text in zip(piece, texts, strict=True):
                found[i] = text
        return found

    def say(self, messages: Messages, draw: torch.Generator, tell: Callable[[str], None]) -> str:
        """The next turn of one conversation, of which `tell` is given each piece once it is known.

        Raises:
            UserError: the conversation leaves no room for an answer.
        """
        streamer = _Told(self.chat.tokenizer, tell)
        (text,) = self._generate([self._checked(messages)], [draw], streamer=streamer)
        return text

    def _together(self, prompts: list[list[int]]) -> list[list[int]]:
        """Which prompts are answered at once: one at a time, where others change an answer."""
        if len(prompts) > 1 and not self._apart(prompts):
            return [[i] for i in range(len(prompts))]
        lengths = [len(ids) + self.settings.max_new_tokens for ids in prompts]
        return pieces.cut(lengths, TOGETHER)

    @torch.inference_mode()
    def _apart(self, prompts: list[list[int]]) -> bool:
        """Whether a prompt's answer is the same beside others and behind padding, which a model may
        take into its state (RWKV): it is tried, on two tokens behind the shortest."""
        first, *_, last = sorted(prompts, key=len)
        asked = {"min_new_tokens": 2, "max_new_tokens": 2, "return_dict_in_generate": True}
        with evaluating(self.model), _plain(self.model), quiet():
            alone, beside = (
                self.model.generate(
                    **self._padded(each), do_sample=False, **asked, output_logits=True
                )
                for each in ([first], [first, last])
            )
        one, other = (torch.stack(found.logits)[:, 0].float() for found in (alone, beside))
        return torch.allclose(one, other, rtol=0, atol=1e-2 * float(one.abs().max()))

    def _padded(self, prompts: list[list[int]]) -> dict[str, Tensor]:
        """The prompts with padding in front, and its mask, (b, t) each."""
        pad, device = self.chat.tokenizer.pad_token_id or 0, self.model.device
        width = max(map(len, prompts))
        ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts])
        lengths = torch.tensor([len(p) for p in prompts])
        mask = (torch.arange(width) >= width - lengths[:, None]).long()
        return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}

    @torch.inference_mode()
    def _generate(
        self, prompts: list[list[int]], draws: Sequence[torch.Generator], **more: Any
    ) -> list[str]:
        tokenizer, width = self.chat.tokenizer, max(map(len, prompts))
        with evaluating(self.model), _plain(self.model), quiet():
            found = self.model.generate(
                **self._padded(prompts),
                do_sample=False,
                max_new_tokens=self.settings.max_new_tokens,
                eos_token_id=self.ends or None,
                pad_token_id=tokenizer.pad_token_id or 0,
                logits_processor=self._choice(draws),
                **more,
            )
        new = [self._ended(ids) for ids in found[:, width:].tolist()]
        return [t.strip() for t in tokenizer.batch_decode(new, skip_special_tokens=True)]

    def _ended(self, ids: list[int]) -> list[int]:
        """An answer's tokens without what ends it and the padding behind, which may be words to a
        tokenizer that knows neither."""
        return list(takewhile(lambda i: i not in self.ends, ids))

    def _choice(self, draws: Sequence[torch.Generator]) -> LogitsProcessorList:
        """How a token is chosen: the likeliest, unless there is a temperature."""
        if not self.settings.temperature:
            return LogitsProcessorList()
        warmth = TemperatureLogitsWarper(self.settings.temperature)
        return LogitsProcessorList([warmth, _Drawn(draws, self.settings.top_p)])

    def _checked(self, messages: Messages) -> list[int]:
        ids = self.chat.prompt(messages)
        limits.check(ids, self.words, self.chat.tokenizer)
        if len(ids) > self.room:
            raise UserError(
                f"a conversation of {len(ids):,} tokens leaves no room for an answer of "
                f"{self.settings.max_new_tokens}: the model reads {self.room:,} besides. Shorten "
                "it, or lower generate.max_new_tokens"
            )
        return ids


@contextmanager
def _plain(model: Any) -> Iterator[None]:
    """Inside, nothing that a model's own generation_config asks for holds, as beams, penalties and
    tokens that are never said: `settings` says how tokens are chosen."""
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


class _Drawn(LogitsProcessor):
    """Leaves of each row one token, drawn from the row's own stream; Transformers' sampling would
    draw all rows' tokens from the global generator. On the CPU, as a GPU has no way to sum chances
    that gives the same bits each time."""

    def __init__(self, draws: Sequence[torch.Generator], top_p: float) -> None:
        self.draws, self.likeliest = draws, TopPLogitsWarper(top_p)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """scores (b, v), as logits."""
        chances = self.likeliest(input_ids.cpu(), scores.float().cpu()).softmax(dim=-1)
        drawn = [
            torch.multinomial(chance, 1, generator=draw)
            for chance, draw in zip(chances, self.draws, strict=True)
        ]
        tokens = torch.stack(drawn).to(scores.device)  # (b, 1)
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens, 0.0)


class _Told(TextStreamer):
    def __init__(self, tokenizer: Any, tell: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.tell = tell

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.tell(text)
