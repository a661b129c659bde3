"""The turns of one conversation, from the forms in which they are published.

Everything here raises ValueError or TypeError, which say what is wrong with them. What a model
could see or learn and a turn of ours has no place for is refused: it would be lost.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from fedlora.data.columns import filled, kind, text
from fedlora.data.formats import DECODER

Message = dict[str, str]
Conversation = list[Message]

ROLES = {
    "system": "system",
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "chatgpt", "bot"), "assistant"),
}
LOST = (
    *("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking"),
    *("images", "audio"),
)
LEARNT = ("weight", "train", "loss")  # keys that say whether an answer is to be learnt
YES = ("1", "1.0", "true", "True")  # what they have where it is


def conversation(value: Any, role: str, content: str) -> Conversation:
    """Of turns with these keys."""
    return [_message(turn, role, content) for turn in _listed(value)]


def given(values: Sequence[Any]) -> set[str]:
    """The keys of all turns that have a value."""
    turns = (turn for value in values[:] if value for turn in _listed(value))
    return {key for turn in turns for key, said in turn.items() if said}


def exchange(question: str, answer: str) -> Conversation:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def after(talk: Conversation, system: str, before: Conversation) -> Conversation:
    """The conversation with a system's turn, if there is one, and the turns before it."""
    first = talk[:1] if talk[:1] and talk[0]["role"] == "system" else []
    if first and system and first[0]["content"] != system:
        raise ValueError("a system's turn other than the one in the column 'system'")
    if system and not first:
        first = [{"role": "system", "content": system}]
    else:
        talk = talk[len(first) :]
    return [*first, *before, *talk]


def whole(talk: Conversation) -> Conversation:
    """The conversation, if there is something to learn in it."""
    roles = [message["role"] for message in talk]
    spoken = roles[1:] if roles[:1] == ["system"] else roles
    if spoken != ["user", "assistant"] * (len(spoken) // 2) + ["user"] * (len(spoken) % 2):
        raise ValueError(f"the turns {', '.join(roles)}: user and assistant are to alternate")
    if "assistant" not in roles:
        raise ValueError("no answer to learn from")
    return talk


def earlier(history: Any) -> Conversation:
    """The turns of a history [["question", "answer"], …]."""
    talk: Conversation = []
    if history is None or history == "":
        return talk
    for pair in _listed(history):
        if isinstance(pair, str | Mapping) or not isinstance(pair, Sequence) or len(pair) != 2:
            raise ValueError(f"{kind(pair)}, where an earlier question and its answer are to be")
        question, answer = (filled(said) for said in pair)
        if not question or not answer:
            raise ValueError("an earlier question or answer without text")
        talk += exchange(question, answer)
    return talk


def _listed(value: Any) -> Sequence[Any]:
    """A list, which a table of text alone has as JSON."""
    if isinstance(value, str):
        try:
            value = DECODER.decode(value)
        except ValueError:
            raise ValueError("text, where a list of turns is to be") from None
    if not isinstance(value, list):
        raise ValueError(f"{kind(value)}, where a list of turns is to be")
    return value


def _message(turn: Any, role: str, content: str) -> Message:
    if not isinstance(turn, Mapping) or role not in turn or content not in turn:
        raise ValueError(f"a turn without {role!r} and {content!r}")
    said = str(turn[role])
    if said.lower() not in ROLES:
        raise ValueError(f"the role {said!r}, which is none of {', '.join(ROLES)}")
    for key in LOST:
        if turn.get(key):
            raise ValueError(f"a turn of {said!r} with {key}, which no run learns or shows")
    for key in LEARNT:
        if ROLES[said.lower()] == "assistant" and text(turn.get(key)) not in (None, *YES):
            raise ValueError(f"an answer of {key} {turn[key]}, and all answers of a row are learnt")
    words = _content(turn[content])
    if not words.strip():
        raise ValueError(f"a turn of {said!r} without text")
    return {"role": ROLES[said.lower()], "content": words}


def _content(value: Any) -> str:
    """Text, or the text of its parts end to end, as chat templates have it."""
    return "".join(map(_part, value)) if isinstance(value, list) else text(value) or ""


def _part(part: Any) -> str:
    if not isinstance(part, Mapping):
        return text(part) or ""
    if not str(part.get("type") or "text").endswith("text") or "text" not in part:
        raise ValueError(f"a part of the type {part.get('type')!r}, and text alone is learnt")
    return text(part["text"]) or ""
