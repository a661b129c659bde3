"""Conversations as text and tokens, held against templates written out by hand."""

from pathlib import Path

import pytest

from fedlora.errors import UserError
from fedlora.tasks.chat import PLAIN, Chat
from fedlora.tasks.instruction import Instruction
from tests.fedlora.tasks.talk import TEMPLATE, instruction, save, turns


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("chat"))


def learnt(task: Instruction, chat: Chat, messages: list[dict[str, str]]) -> list[str]:
    ids, mask = chat.tokens(messages, everything=False)
    words = task.tokenizer.convert_ids_to_tokens(ids)
    return [word for word, is_target in zip(words, mask, strict=True) if is_target]


def test_answers_and_their_ends_are_learnt_and_nothing_else(model: Path) -> None:
    """Of several answers each, with the token that closes it; neither questions, nor the system's
    words, nor headings."""
    task = instruction(model)
    messages = turns("what", "red", "colour has", "green blue", system="it is")
    assert task.chat.text(messages).startswith("<| system |> it is </s>\n<| user |> what")
    assert learnt(task, task.chat, messages) == ["red", "</s>", "green", "blue", "</s>"]


def test_a_prompt_is_what_training_saw_before_the_answer(model: Path) -> None:
    """At generation the model reads the same tokens in front of its answer as in training."""
    task = instruction(model)
    messages = turns("what colour has thing1", "it is red")
    ids, mask = task.chat.tokens(messages, everything=False)
    prompt = task.chat.text(messages[:1], answer=True)
    asked = task.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert ids[: mask.index(True)] == asked


def test_the_template_is_the_run_s_else_the_tokenizer_s_else_plain(
    tmp_path: Path, model: Path
) -> None:
    """A configured template wins and is what the tokenizer is saved with."""
    bare = save(tmp_path / "bare", template=None)
    assert instruction(bare).tokenizer.chat_template == PLAIN
    assert instruction(model).tokenizer.chat_template == TEMPLATE
    other = "{% for m in messages %}{{ m.content }} </s> {% endfor %}"
    assert instruction(model, model__chat_template=other).tokenizer.chat_template == other


def test_the_plain_template_closes_answers(tmp_path: Path) -> None:
    """What a model without a template learns ends with the token that ends a text."""
    task = instruction(save(tmp_path, template=None))
    text = task.chat.text(turns("what", "red"))
    assert text == "<s>### Question:\nwhat\n### Answer:\nred</s>\n"
    assert task.chat.text(turns("what"), answer=True) == "<s>### Question:\nwhat\n### Answer:\n"


def test_a_template_that_rewrites_earlier_turns_is_refused(model: Path) -> None:
    """Where answers have no place of their own nothing is masked wrongly in silence."""
    fickle = "{{ messages | length }} " + TEMPLATE
    task = instruction(model, model__chat_template=fickle)
    with pytest.raises(UserError, match="writes a turn otherwise"):
        task.chat.tokens(turns("what", "red", "colour", "blue"), everything=False)
    assert task.chat.tokens(turns("what", "red"), everything=True)[1]


def test_a_template_s_refusal_says_what_it_was_given(model: Path) -> None:
    """Some templates know no system turn."""
    strict = "{{ raise_exception('no system') if messages[0].role == 'system' }}" + TEMPLATE
    task = instruction(model, model__chat_template=strict)
    with pytest.raises(UserError, match=r"system, user, assistant \(no system\)"):
        task.chat.tokens(turns("what", "red", system="it"), everything=False)
