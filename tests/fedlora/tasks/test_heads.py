"""A base that has a head of its own, for labels in whatever order, number and writing."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    DistilBertConfig,
    LlamaConfig,
    RobertaConfig,
)
from transformers import AutoModelForSequenceClassification as Classes

from fedlora.config import MINILM
from fedlora.evaluation import evaluate
from fedlora.models import locate
from fedlora.streams import forked
from fedlora.tasks import heads
from tests.fedlora.adapters.tiny import SIZES
from tests.fedlora.tasks.made import classification

TEXTS = ["one", "a longer text", "two words", "so so", "another one", "what is it"]
DISTIL: dict[str, Any] = {"dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 2}
BASES = {
    "roberta": RobertaConfig(**{**SIZES, "vocab_size": 30522}, initializer_range=1.0),
    "distilbert": DistilBertConfig(**DISTIL, initializer_range=1.0),
    "llama": LlamaConfig(**{**SIZES, "vocab_size": 30522}, initializer_range=1.0),
}


def base(folder: Path, labels: list[str], name: str = "roberta", **settings: Any) -> Path:
    """A base whose head is for these labels."""
    described = copy.deepcopy(BASES[name])
    vars(described).update(heads.named(labels), **settings)
    with forked(0, "base"):
        model = Classes.from_config(described)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(locate(MINILM), local_files_only=True).save_pretrained(folder)
    return folder


def guesses(folder: Path) -> list[str]:
    """What the base itself says of each text, one at a time, in plain Transformers."""
    model, tokenizer = Classes.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        found = [model(**tokenizer(t, return_tensors="pt")).logits.argmax().item() for t in TEXTS]
    return [model.config.id2label[i] for i in found]


@pytest.mark.parametrize("name", BASES)
def test_a_head_is_the_labels_that_it_names(name: str, tmp_path: Path) -> None:
    """Rows that the base has all right are all right, though its labels are in another order than
    the data's sorted ones; and the settings are the data's."""
    folder = base(tmp_path, ["sad", "calm", "glad"], name, problem_type="regression")
    said = guesses(folder)
    labels = ["calm", "glad", "sad"]
    task = classification(folder, labels, 20)
    rows = Dataset.from_dict({"text": TEXTS, "label": [labels.index(x) for x in said]})
    model = task.model(0)
    assert evaluate(task, model, task.encode(rows)).score == 1.0 and task.notes == []
    assert model.config.id2label == dict(enumerate(labels))
    assert model.config.label2id == {label: i for i, label in enumerate(labels)}
    assert model.config.problem_type == "single_label_classification"


def test_labels_are_matched_in_other_letters_and_said(tmp_path: Path) -> None:
    """Where no two could be meant; some of a base's labels may be all that the data has."""
    folder = base(tmp_path, ["NEUTRAL", "POSITIVE", "NEGATIVE"])
    first = load_file(folder / "model.safetensors")["classifier.out_proj.weight"]
    task = classification(folder, ["negative", "positive"], 20)
    model = task.model(0)
    assert torch.equal(model.classifier.out_proj.weight, first[[2, 1]])
    assert (
        model.classifier.out_proj.out_features == model.num_labels == model.config.num_labels == 2
    )
    assert model.config.id2label == {0: "negative", 1: "positive"}
    (note,) = task.notes
    assert "own head is used" in note and "NEGATIVE, POSITIVE" in note
    assert model(input_ids=torch.ones(2, 3, dtype=torch.long)).logits.shape == (2, 2)


@pytest.mark.parametrize(
    ("own", "wanted", "rows"),
    [
        (["b", "a"], ["a", "b"], [1, 0]),
        (["B", "a"], ["a", "b"], [1, 0]),
        (["very  Good", "bad"], ["Bad", "very good"], [1, 0]),
        (["a", "A"], ["A", "a"], [1, 0]),
        (["a", "A", "b"], ["a", "B"], []),  # which a?
        (["a", "b"], ["a", "A"], []),
        (["a", "a"], ["a"], []),
        (["LABEL_0", "LABEL_1"], ["a", "b"], []),
        (["a", "b"], ["a", "b", "c"], []),
    ],
)
def test_which_row_is_which_label(own: list[str], wanted: list[str], rows: list[int]) -> None:
    assert heads.rows(own, wanted) == rows


@pytest.mark.usefixtures("global_rng_untouched")
@pytest.mark.parametrize("own", [["LABEL_0", "LABEL_1", "LABEL_2"], ["up", "down"], ["one"]])
def test_other_labels_draw_the_output_layer_anew(own: list[str], tmp_path: Path) -> None:
    """From the seed, the same for all, with a word on it; what else the head has is kept. Of as
    many labels and of others alike."""
    folder = base(tmp_path, own)
    before = load_file(folder / "model.safetensors")
    task = classification(folder, ["calm", "glad", "sad"], 20)
    one, same, other = (task.model(seed).classifier for seed in (0, 0, 1))
    assert torch.equal(one.out_proj.weight, same.out_proj.weight)
    assert not torch.equal(one.out_proj.weight, other.out_proj.weight)
    assert one.out_proj.weight.detach().std().item() == pytest.approx(
        1.0, rel=0.5
    )  # initializer_range
    assert one.out_proj.bias.tolist() == [0, 0, 0]
    assert torch.equal(one.dense.weight, before["classifier.dense.weight"])
    (note,) = task.notes
    assert "drawn anew" in note and own[0] in note and "calm, glad, sad" in note


def test_a_base_without_a_head_says_nothing(tmp_path: Path) -> None:
    """A new head is no news."""
    task = classification(MINILM, ["calm", "glad", "sad"], 20)
    task.model(0)
    assert task.notes == []


def test_names_of_labels_may_be_numbers(tmp_path: Path) -> None:
    """As a configuration has them that was written by hand."""
    folder = base(tmp_path, ["1", "0"])
    known = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(known | {"id2label": {"0": 1, "1": 0}}))
    task = classification(folder, ["0", "1"], 20)
    first = load_file(folder / "model.safetensors")["classifier.out_proj.weight"]
    assert torch.equal(task.model(0).classifier.out_proj.weight, first[[1, 0]])
    assert task.notes == []


def test_a_drawn_pooler_is_said(tmp_path: Path) -> None:
    """It is trained and exported with the head, as any of it that the base lacks."""
    sizes = {**SIZES, "vocab_size": 30522}
    AutoModelForMaskedLM.from_config(BertConfig(**sizes)).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(locate(MINILM), local_files_only=True).save_pretrained(tmp_path)
    task = classification(tmp_path, ["a", "b"], 20)
    pooler, same, other = (task.model(seed).bert.pooler.dense.weight for seed in (0, 0, 1))
    assert torch.equal(pooler, same) and not torch.equal(pooler, other)
    (note,) = task.notes
    assert "bert.pooler" in note and "drawn" in note
