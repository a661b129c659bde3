"""Answers of a language model, against a loop that takes one token at a time."""

from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from fedlora.config import Generate
from fedlora.errors import UserError
from fedlora.generation import Speaker
from fedlora.streams import stream
from fedlora.tasks.instruction import Instruction
from tests.fedlora import architectures
from tests.fedlora.tasks.talk import instruction, save, turns

TALKS = [turns("what"), turns("what colour has thing1 it is"), turns("red", "blue", "has it")]


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Instruction:
    return instruction(save(tmp_path_factory.mktemp("generation")))


def streams(seed: int) -> list[torch.Generator]:
    return [stream(seed, "test", i) for i in range(len(TALKS))]


def by_hand(task: Instruction, model: torch.nn.Module, talk: list[dict[str, str]], n: int) -> str:
    """The likeliest token, again and again, of a prompt alone and without a cache."""
    text = task.chat.text(talk, answer=True)
    ids = task.tokenizer(text, add_special_tokens=False)["input_ids"]
    said: list[int] = []
    while len(said) < n:
        token = int(model(input_ids=torch.tensor([ids + said])).logits[0, -1].argmax())
        if token == task.tokenizer.eos_token_id:
            break
        said.append(token)
    return str(task.tokenizer.decode(said, skip_special_tokens=True)).strip()


@pytest.mark.usefixtures("global_rng_untouched")
def test_greedy_answers_are_the_likeliest_tokens(task: Instruction) -> None:
    """Of prompts of any length together, padded on the left, as of each alone."""
    model = task.model(0).eval()
    speaker = Speaker(model, task.tokenizer, Generate(max_new_tokens=6))
    found = speaker.answers(TALKS, streams(0))
    assert found == [by_hand(task, model, talk, 6) for talk in TALKS]
    told: list[str] = []
    assert speaker.say(TALKS[1], stream(0), told.append) == found[1]
    assert "".join(told).strip() == found[1]


OWN: list[dict[str, Any]] = [
    {"num_beams": 3, "num_return_sequences": 2},
    {"suppress_tokens": [*range(5, 20)], "repetition_penalty": 3.0},
    {"sequence_bias": [[[9], 50.0]], "forced_eos_token_id": 2},
    {"stop_strings": ["thing"], "max_time": 1e-9},
    {"return_dict_in_generate": True, "do_sample": True, "temperature": 9.0},
]


@pytest.mark.parametrize("own", OWN, ids=lambda own: next(iter(own)))
def test_how_a_model_would_choose_tokens_itself_changes_nothing(
    task: Instruction, own: dict[str, Any]
) -> None:
    """It is kept, and the tokens are the likeliest."""
    model = task.model(0).eval()
    for name, value in own.items():
        setattr(model.generation_config, name, value)
    said = Speaker(model, task.tokenizer, Generate(max_new_tokens=6)).answers(TALKS, streams(0))
    assert said == [by_hand(task, model, talk, 6) for talk in TALKS]
    assert all(getattr(model.generation_config, name) == value for name, value in own.items())


def test_a_model_that_others_change_answers_one_at_a_time(tmp_path: Path) -> None:
    """RWKV has no mask: padding is in its state. Others answer together."""
    own = architectures.task("rwkv", "instruction", tmp_path / "base")
    model = own.model(0).eval()
    speaker = Speaker(model, own.tokenizer, Generate(max_new_tokens=6))
    assert speaker.answers(TALKS, streams(0)) == [by_hand(own, model, talk, 6) for talk in TALKS]


@pytest.mark.usefixtures("global_rng_untouched")
def test_drawn_answers_are_the_seed_s_and_their_own(task: Instruction) -> None:
    """The same stream gives the same answer, alone or in company; another one another; and the
    global generator is left as it was."""
    speaker = Speaker(task.model(0), task.tokenizer, Generate(max_new_tokens=8, temperature=2.0))
    found = speaker.answers(TALKS, streams(0))
    assert speaker.answers(TALKS, streams(0)) == found != speaker.answers(TALKS, streams(1))
    assert speaker.answers(TALKS[1:2], streams(0)[1:2]) == found[1:2]


def test_a_tiny_nucleus_is_greedy(task: Instruction) -> None:
    """top_p near 0 leaves the likeliest token alone, whatever the temperature."""
    model = task.model(0)
    warm = Generate(max_new_tokens=5, temperature=3.0, top_p=1e-6)
    cold = Generate(max_new_tokens=5)
    drawn = Speaker(model, task.tokenizer, warm).answers(TALKS, streams(3))
    assert drawn == Speaker(model, task.tokenizer, cold).answers(TALKS, streams(0))


def test_an_answer_ends_where_the_template_ends_a_turn(task: Instruction) -> None:
    """Which may be another token than the one that ends a text."""
    closes = "{% for m in messages %}<| {{ m.role }} |> {{ m.content }} <s>{% endfor %}"
    other = instruction(Path(task.pretrained.source), model__chat_template=closes)
    ends = Speaker(other.model(0), other.tokenizer, Generate()).ends
    assert ends == sorted(other.tokenizer.convert_tokens_to_ids(["<s>", "</s>"]))


def test_a_conversation_without_room_is_refused(task: Instruction) -> None:
    """In words, before the model is asked."""
    speaker = Speaker(task.model(0), task.tokenizer, Generate(max_new_tokens=50))
    with pytest.raises(UserError, match="leaves no room for an answer of 50"):
        speaker.answers([turns("what " * 40)], [stream(0)])
    assert not speaker.fits(turns("what " * 40)) and speaker.fits(turns("what"))


def test_a_model_that_sees_has_the_room_that_its_settings_of_text_say(tmp_path: Path) -> None:
    """Of 130 positions; its tokenizer says nothing."""
    own = architectures.task("gemma3", "instruction", tmp_path / "base")
    speaker = Speaker(own.model(0), own.tokenizer, Generate(max_new_tokens=30))
    assert speaker.room == 100


def test_what_is_behind_an_end_is_no_answer_though_its_tokens_are_words(task: Instruction) -> None:
    """Of a tokenizer that knows no special token, where the model's settings name the end: shorter
    answers are padded, and neither that nor the end is part of them."""
    model = task.model(0)
    whole = Speaker(model, task.tokenizer, Generate(max_new_tokens=6)).answers(TALKS, streams(0))
    words = [answer.split() for answer in whole]
    end = task.tokenizer.convert_tokens_to_ids(words[0][1])
    bare: Any = PreTrainedTokenizerFast(tokenizer_object=task.tokenizer.backend_tokenizer)
    bare.chat_template = task.tokenizer.chat_template
    speaker = Speaker(model, bare, Generate(max_new_tokens=6))
    speaker.ends = [end]
    said = list(takewhile(lambda word: word != words[0][1], words[0]))
    assert speaker.answers(TALKS, streams(0))[0].split() == said


def test_a_template_that_ends_no_answer_is_said(task: Instruction) -> None:
    open_ended = "{% for m in messages %}<| {{ m.role }} |> {{ m.content }} {% endfor %}"
    other = instruction(Path(task.pretrained.source), model__chat_template=open_ended)
    assert not task.notes and "learns no end" in other.notes[0]
