"""What is found out about rows and a model before anything trains."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BartConfig,
    BartForSequenceClassification,
    Gemma3Config,
    Gemma3ForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
)

from fedlora.config import Config, Generate
from fedlora.errors import UserError
from fedlora.generation import Speaker
from fedlora.streams import forked, stream
from fedlora.tasks import usable
from fedlora.tasks.classification import Classification
from fedlora.tasks.encoded import Encoded
from fedlora.tasks.instruction import Instruction
from tests.fedlora.tasks.talk import SPECIAL, WORDS, instruction, save, turns

TALKS = [
    turns("what colour has thing1 it", "it is red"),
    turns("has", "blue"),
    turns("what", "red green blue black red"),
]
# Tokenizers that lack this or that, as models have them.
LACKING: dict[str, dict[str, Any]] = {
    "nothing special": {},
    "an unknown word alone": {"unk_token": "<unk>"},
    "no padding": {"unk_token": "<unk>", "eos_token": "</s>"},
    "padding is the end": {"pad_token": "</s>", "eos_token": "</s>"},
    "padding on the left": {"pad_token": "<s>", "eos_token": "</s>", "padding_side": "left"},
    "padding beyond the model": {"pad_token": "<late>", "eos_token": "</s>"},
}


def tokenizer(**special: Any) -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., Instruction]:
    def make(special: dict[str, Any], **fields: Any) -> Instruction:
        with forked(0, "llama"):
            model = LlamaForCausalLM(
                LlamaConfig(
                    vocab_size=len([*SPECIAL, *WORDS]),
                    hidden_size=32,
                    intermediate_size=48,
                    num_hidden_layers=1,
                    num_attention_heads=4,
                    max_position_embeddings=64,
                    initializer_range=0.2,
                    pad_token_id=None,
                    bos_token_id=None,
                    eos_token_id=None,
                )
            )
        model.save_pretrained(tmp_path)
        tokenizer(**special).save_pretrained(tmp_path)
        return instruction(tmp_path, **fields)

    return make


def encoded(task: Instruction, talks: list[Any] = TALKS) -> Encoded:
    return task.encode(Dataset.from_dict({"messages": talks}))


@pytest.mark.parametrize("name", LACKING)
def test_rows_and_answers_are_the_same_beside_others_whatever_the_tokenizer_lacks(
    made: Callable[..., Instruction], name: str
) -> None:
    """Of padded rows each has the loss that Transformers has of it alone; of padded prompts each
    has the answer that it has alone; and an end that pads is learnt where it ends an answer."""
    task = made(LACKING[name])
    model, rows = task.model(0), encoded(task)
    usable.rehearse(task, model)
    together = task.losses(model, task.batch(rows, range(len(rows))))
    for i in range(len(rows)):
        ids, targets = (rows.tokens(k, i)[None].long() for k in ("input_ids", "labels"))
        alone = model(input_ids=ids, labels=targets).loss
        torch.testing.assert_close(together[i], alone, rtol=1e-5, atol=1e-6)
        ends = task.tokenizer.eos_token_id
        assert (ends in targets.tolist()[0]) == (ends is not None)
    speaker = Speaker(model, task.tokenizer, Generate(max_new_tokens=6))
    asked = [talk[:1] for talk in TALKS]
    found = speaker.answers(asked, [stream(0)] * len(asked))
    assert found == [speaker.answers([talk], [stream(0)])[0] for talk in asked]
    assert any(found)


def test_a_word_that_the_model_has_no_embedding_of_is_said_with_its_row(tmp_path: Path) -> None:
    """As of a tokenizer that was given words after the model was trained; also of what a person
    types."""
    task = instruction(save(tmp_path))
    task.tokenizer.add_tokens(["great"])
    with pytest.raises(
        UserError, match=r"row that begins 'has great.*does not know the token 'great'"
    ):
        encoded(task, [*TALKS, turns("has great", "red")])
    assert len(encoded(task)) == 3
    speaker = Speaker(task.model(0), task.tokenizer, Generate(max_new_tokens=6))
    with pytest.raises(UserError, match="'great'"):
        speaker.answers([turns("has great")], [stream(0)])


def test_rows_that_teach_nothing_are_told_with_the_reason(tmp_path: Path) -> None:
    """All answers cut off, or all of unknown words, of which only the end is learnt; one word of
    one row is enough."""
    folder = save(tmp_path)
    short, task = instruction(folder, data__max_length=6), instruction(folder)
    with pytest.raises(UserError, match=r"2 of 2 are longer than 6 tokens.*data\.max_length"):
        usable.teach(short, encoded(short, TALKS[:1] * 2))
    unknown = [turns("what", "rouge"), turns("it", "vert bleu")]
    with pytest.raises(UserError, match="all 2 answers are special tokens"):
        usable.teach(task, encoded(task, unknown))
    usable.teach(task, encoded(task, [*unknown, turns("it", "vert blue")]))
    with pytest.raises(UserError, match="all 1 answers"):  # of a selection
        usable.teach(task, encoded(task, [*unknown, TALKS[0]]).select([1]))


def test_texts_without_a_word_are_told(tmp_path: Path) -> None:
    """All of them, an error; many words that the tokenizer does not know; one that is no token."""
    tokenizer(unk_token="<unk>", pad_token="</s>").save_pretrained(tmp_path)
    RobertaConfig(vocab_size=29, pad_token_id=2).save_pretrained(tmp_path)
    task = classification(tmp_path)

    def rows(*texts: str) -> Encoded:
        return task.encode(Dataset.from_dict({"text": texts, "label": [0] * len(texts)}))

    with pytest.raises(UserError, match=r"all 2 texts are special tokens.*language"):
        usable.teach(task, rows("quelle couleur", "rouge </s>"))
    usable.teach(task, rows("quelle couleur", "it rouge"))
    assert "3 of 4 tokens of the rows are <unk>" in usable.unknown(
        task, rows("quelle couleur", "it rouge </s>")
    )
    assert usable.unknown(task, rows("red " * 11 + "rouge")) == ""
    with pytest.raises(UserError, match=r"row that begins '.u3000': .* makes no token of it"):
        rows("red", "\u3000")


def test_what_a_limit_costs_names_the_one_that_counts(tmp_path: Path) -> None:
    """The run's, or the model's where that is lower, though no row is cut."""
    folder = save(tmp_path, max_position_embeddings=16)
    own, asked = instruction(folder, data__max_length=8), instruction(folder, data__max_length=99)
    assert own.max_length == 8 and asked.max_length == 16
    assert "3 of 3 rows are longer than data.max_length = 8 " in usable.cuts(own, [encoded(own)], 8)
    said = usable.cuts(asked, [encoded(asked)], 99)
    assert "no row is longer than the 16 tokens" in said and "data.max_length = 99" in said
    assert usable.cuts(asked, [encoded(asked)], 16) == ""


def classification(folder: Path, **data: Any) -> Classification:
    tree = {"model": {"name": str(folder)}, "data": data}
    return Classification(Config.model_validate(tree), ["bad", "good"])


def test_a_model_that_reads_less_than_it_says_is_told_how_much(tmp_path: Path) -> None:
    """Where no table says so: it is tried, and what it does read is found."""
    tokenizer(pad_token="</s>").save_pretrained(tmp_path)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    RobertaModel(
        RobertaConfig(
            vocab_size=29, intermediate_size=16, max_position_embeddings=20, pad_token_id=1, **sizes
        )
    ).save_pretrained(tmp_path)
    task = classification(tmp_path, max_length=48)
    assert task.max_length == 18
    model = task.model(0)
    usable.rehearse(task, model)
    task.max_length = 24
    # What is read at any width, which is a multiple of eight.
    with pytest.raises(UserError, match=r"of 24 tokens.*set data\.max_length=16"):
        usable.rehearse(task, model)


def test_a_classifier_that_finds_the_end_of_a_row_by_its_padding_needs_one(tmp_path: Path) -> None:
    """GPT-2's kind reads the last token that is no padding; another's is any."""
    tokenizer().save_pretrained(tmp_path)
    GPT2ForSequenceClassification(
        GPT2Config(vocab_size=29, n_embd=16, n_layer=1, n_head=2, n_positions=24, eos_token_id=None)
    ).save_pretrained(tmp_path)
    task = classification(tmp_path)
    with pytest.raises(UserError, match="pad_token"):
        usable.rehearse(task, task.model(0))


def test_a_model_that_takes_padding_for_an_end_is_told_to_be_given_another(tmp_path: Path) -> None:
    """BART reads where a row ends, and finds several ends in one that ends pad: it is no question
    of length."""
    ends = tokenizer(unk_token="<unk>", eos_token="</s>", pad_token="</s>")
    ends.save_pretrained(tmp_path)
    layers = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 16}
    ids = {"vocab_size": 29, "eos_token_id": 2, "max_position_embeddings": 24}
    BartForSequenceClassification(BartConfig(d_model=16, **layers, **heads, **ids)).save_pretrained(
        tmp_path
    )
    task = classification(tmp_path, max_length=16)
    with pytest.raises(UserError, match="pad_token") as error:
        usable.rehearse(task, task.model(0))
    assert "'</s>'" in str(error.value) and "max_length=" not in str(error.value)


def test_a_classifier_of_a_model_inside_another_reads_rows_to_their_end(tmp_path: Path) -> None:
    """Its padding is a part's of the configuration: a padded row is what it is alone."""
    tokenizer(unk_token="<unk>", eos_token="</s>").save_pretrained(tmp_path)
    both = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    text = {**both, "num_hidden_layers": 1, "num_key_value_heads": 2, "head_dim": 8}
    seen = {**both, "num_hidden_layers": 1, "image_size": 28, "patch_size": 14}
    config = Gemma3Config(
        text_config={**text, "vocab_size": 29, "max_position_embeddings": 24, "pad_token_id": None},
        vision_config=seen,
        mm_tokens_per_image=1,
    )
    with forked(0, "gemma"):
        Gemma3ForSequenceClassification(config).save_pretrained(tmp_path)
    task = classification(tmp_path, max_length=48)
    assert task.max_length == 24
    model = task.model(0)
    texts = Dataset.from_dict({"text": ["what has it", "red", "it is " * 9], "label": [0, 1, 0]})
    rows = task.encode(texts)
    together = task.losses(model, task.batch(rows, range(3)))
    for i, label in enumerate(texts["label"]):
        alone = model(input_ids=rows.tokens("input_ids", i)[None].long()).logits
        truth = torch.nn.functional.cross_entropy(alone.float(), torch.tensor([label]))
        torch.testing.assert_close(together[i], truth, rtol=1e-5, atol=1e-6)
