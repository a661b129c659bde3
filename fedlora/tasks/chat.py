"""How a conversation becomes text and tokens, by any chat template."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from fedlora.errors import UserError

# For a model without a template: each turn under its heading, an answer closed by the token that
# ends a text.
PLAIN = (
    "{{ bos_token or '' }}"
    "{% for message in messages %}"
    "{% if message.role == 'assistant' %}### Answer:\n{{ message.content }}{{ eos_token }}\n"
    "{% else %}### {{ 'System' if message.role == 'system' else 'Question' }}:\n"
    "{{ message.content }}\n{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}### Answer:\n{% endif %}"
)

ANSWER = "an answer"  # to see what a template writes behind one

Messages = Sequence[dict[str, str]]


class Chat:
    """A tokenizer with its template, which from now on is the tokenizer's own.

    Args:
        template: Jinja; by default the tokenizer's, or PLAIN where it has none.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str | None) -> None:
        self.tokenizer = tokenizer
        tokenizer.chat_template = template or tokenizer.chat_template or PLAIN
        if not tokenizer.is_fast:
            raise UserError(
                f"{tokenizer.name_or_path}: its tokenizer does not say where in a text a token "
                "stands, so answers cannot be told from questions: use a model with a "
                "tokenizer.json"
            )

    def text(self, messages: Messages, answer: bool = False) -> str:
        """The conversation as the model reads it; with `answer` up to where its next answer begins.

        Raises:
            UserError: the template does not take these messages.
        """
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    [*messages], tokenize=False, add_generation_prompt=answer
                )
            )
        except Exception as error:  # a template can raise anything, on purpose too
            roles = ", ".join(message["role"] for message in messages)
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"the chat template takes no conversation of the turns {roles} ({reason}): mend "
                "the rows, or set model.chat_template"
            ) from None

    def tokens(self, messages: Messages, everything: bool) -> tuple[list[int], list[bool]]:
        """The conversation's tokens, and which are to be learnt: those of the answers, each with
        what ends it, or all.

        Raises:
            UserError: the template does not take these messages, or writes earlier turns otherwise
                as the conversation goes on, so that answers have no place of their own.
        """
        text = self.text(messages)
        found: Any = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids = list(found["input_ids"])
        if everything:
            return ids, [True] * len(ids)
        spans = [
            self._span(messages, i, text)
            for i, m in enumerate(messages)
            if m["role"] == "assistant"
        ]
        starts = [start for start, _ in found["offset_mapping"]]
        return ids, [any(a <= start < b for a, b in spans) for start in starts]

    def ends(self) -> list[int]:
        """The tokens after which nothing of an answer follows: the one that ends a text, and that
        which the template has behind an answer."""
        asked = [{"role": "user", "content": "?"}]
        before = self.text(asked, answer=True)
        text = self.text([*asked, {"role": "assistant", "content": ANSWER}])
        _, _, behind = text[len(before) :].partition(ANSWER)
        closing = self.tokenizer(behind.strip(), add_special_tokens=False)["input_ids"][:1]
        special = set(self.tokenizer.added_tokens_decoder)
        own = self.tokenizer.eos_token_id
        return sorted({*(i for i in closing if i in special), *([] if own is None else [own])})

    def _span(self, messages: Messages, i: int, text: str) -> tuple[int, int]:
        """Where in the text the answer `messages[i]` begins and ends, without white space that the
        template has behind it."""
        before, after = self.text(messages[:i], answer=True), self.text(messages[: i + 1])
        if not text.startswith(after.rstrip()) or not after.startswith(before):
            raise UserError(
                "the chat template writes a turn otherwise once another follows, so answers cannot "
                "be told from questions: set data.learn=all, model.chat_template, or give "
                "conversations of one answer"
            )
        return len(before), len(after.rstrip())
