"""How a conversation becomes text and tokens, by any chat template.

A template is a program, and what it does with a turn is tried: each is looked for in the text that
comes out. What is learnt begins where the tokens of a prompt end. That may be before the answer's
text does: where a prompt ends in a space, the answer's first token begins with it.
"""

from collections.abc import Sequence
from datetime import date
from functools import cache
from itertools import takewhile
from typing import Any

from transformers import PreTrainedTokenizerBase

from fedlora import limits
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

# A template that asks for the date is told the same one for ever, Llama 3's own where it has no
# clock: training, scoring, answers and a resumed run read the same text on any day.
DAY = date(2024, 7, 26)
FORMATS = [*"aAbBdmyYjHIMSpf", "-d", "-m", "-H", "-I", "-M", "-S"]
CLOCK = (
    "{%- macro strftime_now(format) -%}{{ format"
    + "".join(f" | replace('%{f}', '{DAY.strftime(f'%{f}')}')" for f in FORMATS)
    + " }}{%- endmacro %}"
)

ANSWER = "an answer"  # to see what a template writes around one
TAIL = 64  # characters of a prompt that decide where its last token ends
THOUGHTS = ("<think>", "</think>")  # around which templates have white space of their own

Messages = Sequence[dict[str, str]]
Roles = tuple[str, ...]
Span = tuple[int, int]  # of characters: the first, and the one behind the last


class Chat:
    """A tokenizer with its template, which from now on is the tokenizer's own.

    Args:
        template: Jinja; by default the tokenizer's (of several the one that is called default), or
            PLAIN where it has none.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str | None) -> None:
        self.tokenizer = tokenizer
        tokenizer.chat_template = template or _own(tokenizer) or PLAIN
        if not tokenizer.is_fast:
            raise UserError(
                f"{tokenizer.name_or_path}: its tokenizer does not say where in a text a token "
                "stands, so answers cannot be told from questions: use a model with a "
                "tokenizer.json"
            )
        self._special = limits.special(tokenizer)
        self._in_parts = cache(self._in_parts)  # type: ignore[method-assign]
        self._opening = cache(self._opening)  # type: ignore[method-assign]

    def text(self, messages: Messages, answer: bool = False) -> str:
        """The conversation as the model reads it; with `answer` up to where its next answer begins.

        Raises:
            UserError: the template does not take these messages, or leaves one of them out.
        """
        return self._rendered(messages, answer, self._in_parts(_roles(messages), answer))

    def tokens(self, messages: Messages, everything: bool) -> tuple[list[int], list[bool]]:
        """The conversation's tokens, and which are to be learnt: those of the answers, each with
        what ends it, or all.

        Raises:
            UserError: the template does not take these messages, changes what they say, or writes
                them so that answers have no place of their own.
        """
        text = self.text(messages)
        ids, spans = self._tokenised(text)
        for message in messages:
            if _place(message["content"], text) is None:
                raise UserError(_changed(message["role"]))
        if everything:
            return ids, [True] * len(ids)
        answers = [
            self._answer(messages, i, text, spans)
            for i, message in enumerate(messages)
            if message["role"] == "assistant"
        ]
        pairs = zip(ids, spans, strict=True)
        return ids, [any(self._of(token, span, a) for a in answers) for token, span in pairs]

    def prompt(self, messages: Messages) -> list[int]:
        """The tokens behind which the model says its next answer: those that training has in front
        of one."""
        try:
            before, opening = self._prompted(messages)
        except UserError:  # answers have no place of their own, and everything was learnt
            return list(self._tokenised(self.text(messages, answer=True))[0])
        end = self._end(before, opening)
        ids, spans = self._tokenised(before + opening + ANSWER)
        return [i for i, span in zip(ids, spans, strict=True) if not _behind(span, end)]

    def ends(self) -> list[int]:
        """The tokens after which nothing of an answer follows: the one that ends a text, and that
        which the template has behind an answer."""
        found = {self.closing(), self.tokenizer.eos_token_id}
        return sorted(i for i in found if i is not None)

    def closing(self) -> int | None:
        """The special token that the template has behind an answer, if it has one there."""
        talk = [{"role": "user", "content": "?"}, {"role": "assistant", "content": ANSWER}]
        _, _, behind = self.text(talk).rpartition(ANSWER)
        ids, _ = self._tokenised(behind.strip())
        return next((i for i in ids[:1] if i in self._special), None)

    def _of(self, token: int, span: Span, answer: Span) -> bool:
        """Whether a token is an answer's. A special one that begins before it is not: it may take
        in white space behind it, the answer's too."""
        starts = span[0] >= answer[0] or token not in self._special
        return starts and span[0] < answer[1] and _behind(span, answer[0])

    def _tokenised(self, text: str) -> tuple[list[int], list[Span]]:
        found: Any = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return list(found["input_ids"]), list(found["offset_mapping"])

    def _rendered(self, messages: Messages, answer: bool, parts: Sequence[bool]) -> str:
        template = self.tokenizer.chat_template
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    [_in_part(m) if p else m for m, p in zip(messages, parts, strict=True)],
                    chat_template=CLOCK + template if "strftime_now" in template else template,
                    tokenize=False,
                    add_generation_prompt=answer,
                )
            )
        except Exception as error:  # a template can raise anything, on purpose too
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"the chat template takes no conversation of the turns "
                f"{', '.join(_roles(messages))} ({reason}): mend the rows, or set "
                "model.chat_template"
            ) from None

    def _in_parts(self, roles: Roles, answer: bool) -> tuple[bool, ...]:
        """Of each turn whether the template wants its content in parts. Raises UserError where a
        turn is in the text in neither form."""
        talk, parts = _sample(roles), (False,) * len(roles)
        try:
            text = self._rendered(talk, answer, parts)
        except UserError as error:
            try:
                text, parts = "", (True,) * len(roles)
                text = self._rendered(talk, answer, parts)
            except UserError:
                raise error from None
        else:
            parts = tuple(message["content"] not in text for message in talk)
            if any(parts):
                text = self._rendered(talk, answer, parts)
        for message in talk:
            if message["content"] not in text:
                raise UserError(_changed(message["role"]))
        return parts

    def _prompted(self, messages: Messages) -> tuple[str, str]:
        """The text that an answer to these messages is said behind, and what of the template's
        comes before the answer's own words still: an empty thought, say."""
        opening, told = self._opening(_roles(messages))
        before = self.text(messages, answer=True)
        return (before, opening) if told else (before + opening, "")

    def _opening(self, roles: Roles) -> tuple[str, bool]:
        """What the template has between the end of its prompt for an answer to turns of these
        roles, and the answer; and whether it writes a prompt at all. Where it writes none, the
        heading of an answer is its prompt."""
        talk = _sample((*roles, "assistant"))
        asked, answer = talk[:-1], talk[-1]["content"]
        plain, before = self.text(asked), self.text(asked, answer=True)
        after = self.text(talk)
        if not after.startswith(before):
            if not after.startswith(plain.rstrip()):
                raise UserError(OTHERWISE)
            alike = takewhile(lambda pair: pair[0] == pair[1], zip(before, after, strict=False))
            prompt = before[len(list(alike)) :]
            raise UserError(
                f"the chat template has its prompt for an answer end in {prompt!r}, and writes "
                "nothing of it before the answers of a conversation: what is learnt would not be "
                "what it is asked for. Set model.chat_template to one without it"
            )
        return after[len(before) :].partition(answer)[0], before != plain

    def _end(self, before: str, opening: str) -> int:
        """Where the tokens of a prompt end, which is where the first begins that has something of
        what follows."""
        tail = before[-TAIL:]
        _, spans = self._tokenised(tail + opening + ANSWER)
        start = min((s for s, e in spans if _behind((s, e), len(tail))), default=len(tail))
        return len(before) - len(tail) + min(start, len(tail))

    def _answer(self, messages: Messages, i: int, text: str, spans: Sequence[Span]) -> Span:
        """Where in the text what is learnt of the answer `messages[i]` begins and ends, without
        white space that the template has behind it."""
        before, opening = self._prompted(messages[:i])
        after = self._followed(self.text(messages[: i + 1]), text)
        if not after.startswith(before):
            raise UserError(OTHERWISE)
        content, place = messages[i]["content"], None
        if before.rstrip().endswith(THOUGHTS[0]):  # the prompt opens the answer's thought
            place = _place(content, after, before.rfind(THOUGHTS[0]))
        place = place or _place(content, after, len(before))
        if place is None:
            raise UserError(_changed("assistant"))
        if not any(end > place[0] and start < place[1] for start, end in spans):
            raise UserError("an answer has no letter that the tokenizer knows: mend or remove it")
        return self._end(before, opening), len(after)

    def _followed(self, after: str, text: str) -> str:
        """A conversation as it stands at the beginning of a longer one's text, without white space
        behind it: Phi 3's template ends any with a token of its own, behind the answer's."""
        after = after.rstrip()
        if text.startswith(after):
            return after
        after = after.removesuffix(str(self.tokenizer.eos_token)).rstrip()
        ended = self._tokenised(after[-TAIL:])[0][-1:] == [self.closing()]
        if not ended or not text.startswith(after):
            raise UserError(OTHERWISE)
        return after


OTHERWISE = (
    "the chat template writes a turn otherwise once another follows, so answers cannot be told "
    "from questions: set data.learn=all, model.chat_template, or give conversations of one answer"
)


def _own(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The tokenizer's own template. Raises UserError where it has several and none is default."""
    try:
        return tokenizer.get_chat_template() if tokenizer.chat_template else None
    except ValueError:
        raise UserError(
            f"{tokenizer.name_or_path} has the chat templates "
            f"{', '.join(sorted(tokenizer.chat_template))}, and none of them is its default: set "
            "model.chat_template to the file of one"
        ) from None


def _changed(role: str) -> str:
    return (
        f"the chat template leaves out or rewrites what a turn of the {role} says: set "
        "model.chat_template to one that writes it as it is, or mend the rows"
    )


def _roles(messages: Messages) -> Roles:
    return tuple(message["role"] for message in messages)


def _sample(roles: Roles) -> list[dict[str, str]]:
    """A conversation in which each turn can be told from all that a template writes."""
    return [{"role": role, "content": f"turn{i}of{len(roles)}"} for i, role in enumerate(roles)]


def _in_part(message: dict[str, str]) -> dict[str, Any]:
    return {**message, "content": [{"type": "text", "text": message["content"]}]}


def _place(content: str, text: str, start: int = 0) -> Span | None:
    """Where in the text a turn stands word for word, but for white space around it and around its
    thoughts; None where it does not."""
    for tag in THOUGHTS:
        content = content.replace(tag, f"\0{tag}\0")
    pieces = [piece.strip() for piece in content.split("\0") if piece.strip()]
    first, end = None, start
    for piece in pieces:
        found = text.find(piece, end)
        if found < 0:
            return None
        first, end = found if first is None else first, found + len(piece)
    return (start if first is None else first), end


def _behind(span: Span, end: int) -> bool:
    """Whether a token has something of what is behind a place in the text, or stands there."""
    return span[1] > end or span[0] >= end
