"""Chat templates as models have them, and what tokenizers make of them."""

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from fedlora.errors import UserError
from fedlora.tasks import chat
from fedlora.tasks.chat import Chat
from tests.fedlora.tasks.spelling import KINDS, fast
from tests.fedlora.tasks.talk import turns

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPACE = (  # a prompt that ends in a space
    "{% for m in messages %}{{ m.role }}: {{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
SILENT = SPACE.partition("{% if")[0]  # no prompt for an answer
LLAMA2 = (
    "<s>{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} </s>{% endif %}{% endfor %}"
)
LINES = (  # two line ends, which GPT-2's kind has as one token or two
    "{% for m in messages %}{{ m.role }}\n\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant\n\n{% endif %}"
)
TEMPLATES = {
    "chatml": (CHATML, "<|im_end|>"),
    "space": (SPACE, "</s>"),
    "silent": (SILENT, "</s>"),
    "llama 2": (LLAMA2, "</s>"),
    "lines": (LINES, "</s>"),
}
ANSWERS = ["red", "7", "what", "(it) is", "😀 hi", "ﬁne Ⅷ İ", "Red\n\ngreen"]
# Phi 3's, which ends a text where no answer is asked for.
ENDS = CHATML.replace("{% endif %}", "{% else %}{{ eos_token }}{% endif %}")
# What a model of Qwen 3's kind does: an empty thought before the last answer, none in earlier ones.
THINKS = CHATML.replace(
    "{{ m.content }}",
    "{% if m.role == 'assistant' and loop.last and '<think>' not in m.content %}"
    "<think>\n\n</think>\n\n{% endif %}{{ m.content }}",
)


def learnt(made: Chat, talk: list[dict[str, str]]) -> str:
    """What of a conversation is learnt, as text."""
    ids, flags = made.tokens(talk, everything=False)
    return str(made.tokenizer.decode([i for i, flag in zip(ids, flags, strict=True) if flag]))


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, PreTrainedTokenizerFast]:
    return {kind: fast(kind) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_an_answer_is_learnt_whole_behind_the_prompt_that_asks_for_it(
    tokenizers: dict[str, PreTrainedTokenizerFast], name: str, kind: str
) -> None:
    """Whatever the prompt ends in, and whichever letters the answer has: what is learnt is the
    answer and what ends it, and what stands before is what generation gives the model."""
    template, end = TEMPLATES[name]
    tokenizer = tokenizers[kind]
    made = Chat(tokenizer, template)
    for answer in ANSWERS:
        talk = turns("what has red", answer)
        ids, flags = made.tokens(talk, everything=False)
        asked = made.prompt(talk[:1])
        assert ids[: len(asked)] == asked and flags.index(True) == len(asked)
        taught = [i for i, flag in zip(ids, flags, strict=True) if flag]
        assert taught[-1] == tokenizer.convert_tokens_to_ids(end)
        if kind != "likely":  # whose letters change
            assert tokenizer.decode(taught[:-1]).strip() == answer


@pytest.mark.parametrize(
    "template",
    [
        CHATML.replace("{{ m.content }}", "{% for p in m.content %}{{ p.text }}{% endfor %}"),
        CHATML.replace("{{ m.content }}", "{{ m.content[0]['text'] }}"),
        # the system's turn as it is, others in parts
        CHATML.replace(
            "{{ m.content }}",
            "{% if m.role == 'system' %}{{ m.content }}{% else %}"
            "{% for p in m.content if p.type == 'text' %}{{ p.text }}{% endfor %}{% endif %}",
        ),
        CHATML.replace("{{ m.content }}", "{{ m.content | map(attribute='text') | join }}"),
    ],
)
def test_a_template_that_wants_parts_is_given_parts(
    tokenizers: dict[str, PreTrainedTokenizerFast], template: str
) -> None:
    """It renders nothing, or half of a turn, of a content that is text."""
    tokenizer = tokenizers["bytes"]
    talk = turns("what", "red", "it", "blue", system="has")
    plain = Chat(tokenizer, CHATML)
    truth = plain.text(talk), plain.tokens(talk, everything=False), plain.prompt(talk[:2])
    made = Chat(tokenizer, template)
    assert (made.text(talk), made.tokens(talk, everything=False), made.prompt(talk[:2])) == truth
    assert made.ends() == plain.ends()


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for m in messages if m.role != 'system' %}{{ m.content }}</s>{% endfor %}", "system"),
        ("{{ messages[-1].content }}", "leaves out or rewrites"),
        (CHATML.replace("m.content", "m.content | upper"), "leaves out or rewrites"),
        (CHATML.replace("m.content", "m.content | replace('<', '&lt;')"), "user"),
        (CHATML.replace("m.content", "m.content.split('</think>')[-1]"), "assistant"),
        (CHATML.replace("m.content", "m.content | truncate(12)"), "assistant"),
        ("{% for m in messages %}{{ m.role }}{% endfor %}", "leaves out or rewrites"),
        ("{{ tools[0].name }}" + CHATML, "None has no"),
        ("{{ pad_token + '' }}" + CHATML, "pad_token"),
    ],
)
@pytest.mark.parametrize("everything", [False, True])
def test_a_template_that_changes_what_is_said_is_refused(
    tokenizers: dict[str, PreTrainedTokenizerFast], template: str, said: str, everything: bool
) -> None:
    """Also where the answer's words are in the question too."""
    talk = turns("is it <b> red", "<think>it</think> <b> red", system="it")
    with pytest.raises(UserError, match=said):
        Chat(tokenizers["bytes"], template).tokens(talk, everything)


def test_white_space_around_a_turn_and_its_thoughts_is_the_template_s(
    tokenizers: dict[str, PreTrainedTokenizerFast],
) -> None:
    trims = CHATML.replace("m.content", "m.content | trim | replace('<think>', '<think>\n')")
    made = Chat(tokenizers["bytes"], trims)
    talk = turns("  what", "\n<think>it</think> red \n")
    assert learnt(made, talk) == "<think>\nit</think> red<|im_end|>"


def test_an_answer_that_is_dropped_is_no_answer_that_the_question_has(
    tokenizers: dict[str, PreTrainedTokenizerFast],
) -> None:
    drops = CHATML.replace("m.content", "(m.content if m.content != 'red' else 'blue')")
    with pytest.raises(UserError, match="assistant"):
        Chat(tokenizers["bytes"], drops).tokens(turns("is it red", "red"), everything=False)


def test_thoughts_that_a_prompt_opens_and_answers_lack_are_refused(
    tokenizers: dict[str, PreTrainedTokenizerFast],
) -> None:
    """As of DeepSeek-R1: a model that is asked for a thought would have learnt answers alone."""
    opens = CHATML.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")
    made = Chat(tokenizers["bytes"], opens)
    with pytest.raises(UserError, match=r"'<think>\\n'"):
        made.tokens(turns("what", "red"), everything=False)
    assert all(made.tokens(turns("what", "red"), everything=True)[1])
    assert tokenizers["bytes"].decode(made.prompt(turns("what"))).endswith("<think>\n")


def test_a_thought_that_a_template_has_before_an_answer_is_learnt_with_it(
    tokenizers: dict[str, PreTrainedTokenizerFast],
) -> None:
    """A prompt does not have it, so the model must say it; where an earlier answer is written
    without, it is refused."""
    made = Chat(tokenizers["bytes"], THINKS)
    talk = turns("what", "red")
    assert learnt(made, talk) == "<think>\n\n</think>\n\nred<|im_end|>"
    assert tokenizers["bytes"].decode(made.prompt(talk[:1])) == made.text(talk[:1], answer=True)
    with pytest.raises(UserError, match="writes a turn otherwise"):
        made.tokens(turns("what", "red", "it", "blue"), everything=False)


def test_a_template_s_date_is_one_for_ever(
    tokenizers: dict[str, PreTrainedTokenizerFast], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run over midnight, or resumed a month later, reads the same tokens."""
    dated = "{% set today = strftime_now('%d %b %Y') %}{{ today }}, {{ strftime_now('%A') }} "
    made = Chat(tokenizers["bytes"], dated + CHATML)
    assert made.text(turns("what")).startswith("26 Jul 2024, Friday <|im_start|>")
    assert tokenizers["bytes"].chat_template == dated + CHATML
    assert date(2024, 7, 26) == chat.DAY


def test_of_several_templates_the_default_is_taken(
    tokenizers: dict[str, PreTrainedTokenizerFast],
) -> None:
    tokenizer: Any = tokenizers["bytes"]
    tokenizer.chat_template = {"tool_use": SPACE, "default": CHATML}
    assert Chat(tokenizer, None).tokenizer.chat_template == CHATML
    tokenizer.chat_template = {"tool_use": SPACE, "rag": CHATML}
    with pytest.raises(UserError, match="rag, tool_use"):
        Chat(tokenizer, None)
    assert Chat(tokenizer, SPACE).tokenizer.chat_template == SPACE


def test_thoughts_that_a_prompt_opens_and_rows_have_are_learnt(
    tokenizers: dict[str, PreTrainedTokenizerFast],
) -> None:
    """What follows the opening, which is the prompt's."""
    opens = THINKS.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")
    made = Chat(tokenizers["bytes"], opens)
    assert learnt(made, turns("what", "<think>\nit</think>red")) == "it</think>red<|im_end|>"


def test_a_template_may_end_a_text_that_asks_for_no_answer(
    tokenizers: dict[str, PreTrainedTokenizerFast],
) -> None:
    made = Chat(tokenizers["bytes"], ENDS)
    assert learnt(made, turns("what", "red")) == "red<|im_end|>\n</s>"
    talk = turns("what", "red", "it", "blue")
    assert learnt(made, talk) == "red<|im_end|>blue<|im_end|>\n</s>"
    asked = made.prompt(talk[:3])
    assert made.tokens(talk, everything=False)[0][: len(asked)] == asked
    once = ENDS.replace("<|im_end|>", "")  # no answer but the last has an end
    with pytest.raises(UserError, match="writes a turn otherwise once another follows"):
        learnt(Chat(tokenizers["bytes"], once), talk)
    assert made.text(turns("what"), answer=True).endswith("<|im_start|>assistant\n")


def test_a_heading_that_takes_in_white_space_is_no_part_of_an_answer() -> None:
    """Phi 3's special tokens have the line end behind them, and an answer's own too."""
    tokenizer = fast("bytes")
    greedy: Any = AddedToken("<|assistant|>", rstrip=True, special=True)
    tokenizer.add_special_tokens({"additional_special_tokens": [greedy]})
    template = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}</s>{% endfor %}"
    made = Chat(tokenizer, template)
    assert learnt(made, turns("what", "red")) == learnt(made, turns("what", "\n red")) == "red</s>"


def test_what_a_template_marks_as_generated_is_what_is_learnt(
    tokenizers: dict[str, PreTrainedTokenizerFast],
) -> None:
    """By Transformers' own mask, of a template that has one."""
    marks = CHATML.replace(
        "{{ m.content }}<|im_end|>",
        "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
        "{% else %}{{ m.content }}<|im_end|>{% endif %}{{ '' }}",
    )
    made = Chat(tokenizers["bytes"], marks)
    talk = turns("what", "red", "it", "blue 😀", system="has")
    found: Any = made.tokenizer.apply_chat_template(
        talk, return_assistant_tokens_mask=True, return_dict=True
    )
    ids, flags = made.tokens(talk, everything=False)
    assert (ids, flags) == (found["input_ids"], [bool(mark) for mark in found["assistant_masks"]])


def test_of_a_folder_s_several_templates_the_default_is_taken(
    tokenizers: dict[str, PreTrainedTokenizerFast], tmp_path: Path
) -> None:
    """As tokenizers have been saved: a list of them among their settings."""
    tokenizers["bytes"].save_pretrained(tmp_path)
    for file in tmp_path.glob("*.jinja"):
        file.unlink()
    path = tmp_path / "tokenizer_config.json"
    several = [{"name": "rag", "template": SPACE}, {"name": "default", "template": CHATML}]
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": several}))
    read = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert Chat(read, None).tokenizer.chat_template == CHATML
