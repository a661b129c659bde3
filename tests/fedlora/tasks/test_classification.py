"""The classification task, on small models with MiniLM's tokenizer."""

import math

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2Model,
    ViTConfig,
    ViTModel,
)

from fedlora import tasks
from fedlora.config import MINILM
from fedlora.errors import UserError
from fedlora.evaluation import evaluate
from fedlora.models import locate
from fedlora.tasks.classification import Classification
from tests.fedlora.tasks.made import classification

LABELS = ["calm", "glad", "sad"]
VOCABULARY = 30522
TEXTS = ["one", "a somewhat longer text than the first", "", "two words", "so " * 40]
ROWS = Dataset.from_dict({"text": TEXTS, "label": [0, 1, 2, 1, 0]})


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """{architecture: folder} of checkpoints that lack a classification head."""
    made = {
        "bert": BertModel(
            BertConfig(
                vocab_size=VOCABULARY,
                hidden_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=24,
                max_position_embeddings=44,
            )
        ),
        "gpt2": GPT2Model(
            GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=44)
        ),
        "vit": ViTModel(
            ViTConfig(
                hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
            )
        ),
    }
    tokenizer = AutoTokenizer.from_pretrained(locate(MINILM), local_files_only=True)
    root = tmp_path_factory.mktemp("models")
    for name, model in made.items():
        tokenizer.pad_token = None if name == "gpt2" else "[PAD]"
        tokenizer.eos_token = "[unused0]"
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return {name: str(root / name) for name in made}


@pytest.fixture(params=["bert", "gpt2"])
def task(request, folders):
    return classification(folders[request.param], LABELS, 44)


@pytest.mark.usefixtures("global_rng_untouched")
def test_the_model(task, capfd):
    """fp32, labels by name, a head that the seed decides, and not a word while it loads."""
    one, same, other = task.model(0), task.model(0), task.model(1)
    assert one.config.id2label == dict(enumerate(LABELS))
    assert one.config.pad_token_id == task.tokenizer.pad_token_id is not None
    assert {p.dtype for p in one.parameters()} == {torch.float32}
    differing = []
    for (name, p), q, r in zip(
        one.named_parameters(), same.parameters(), other.parameters(), strict=True
    ):
        assert torch.equal(p, q), name
        differing += [] if torch.equal(p, r) else [name.split(".")[0]]
    assert set(differing) <= {"classifier", "score"} and differing
    assert capfd.readouterr() == ("", "")


def test_a_head_for_other_labels_is_drawn_afresh(folders, tmp_path):
    """A checkpoint with a head of another width is used, its head aside; one that fits is kept."""
    first = classification(folders["bert"], LABELS, 8)
    first.model(0).save_pretrained(tmp_path)
    first.tokenizer.save_pretrained(tmp_path)
    assert classification(str(tmp_path), ["no", "yes"], 8).model(0).classifier.out_features == 2
    kept = classification(str(tmp_path), LABELS, 8).model(5)
    assert torch.equal(kept.classifier.weight, first.model(0).classifier.weight)


def test_batches(task):
    """A batch holds the rows' tokens, padded on the right to the longest row's multiple of 8 and
    never past max_length."""
    encoded = task.encode(ROWS)
    assert len(encoded) == len(TEXTS)
    batch = task.batch(encoded, [3, 0])
    assert batch["input_ids"].shape == (2, 8)
    assert batch["labels"].tolist() == [1, 0]
    for row, mask, text in zip(
        batch["input_ids"], batch["attention_mask"], ["two words", "one"], strict=True
    ):
        tokens = task.tokenizer(text)["input_ids"]
        assert row[: len(tokens)].tolist() == tokens
        assert set(row[len(tokens) :].tolist()) == {task.tokenizer.pad_token_id}
        assert mask.tolist() == [1] * len(tokens) + [0] * (8 - len(tokens))
    assert encoded.length(4) == 42  # whose multiple of 8 is 48
    assert task.batch(encoded, [0, 4])["input_ids"].shape == (2, 44)


def test_a_rows_loss_is_its_own(task):
    """Each loss is that row's cross-entropy, whatever the rows beside it and their lengths."""
    model, encoded = task.model(0), task.encode(ROWS)
    with torch.no_grad():
        together = task.losses(model, task.batch(encoded, range(len(TEXTS))))
        assert together.shape == (len(TEXTS),)
        for i, text in enumerate(TEXTS):
            tokens = task.tokenizer(text, return_tensors="pt", truncation=True, max_length=44)
            target = torch.tensor([ROWS[i]["label"]])
            alone = F.cross_entropy(model(**tokens).logits, target)
            assert together[i].item() == pytest.approx(alone.item(), abs=1e-5)


def test_evaluation_is_that_of_one_row_at_a_time(task):
    """Accuracy and mean loss do not depend on batches, and the model's modes are left alone."""
    model, encoded = task.model(0), task.encode(ROWS)
    right, losses = 0, []
    with torch.no_grad():
        for i in range(len(encoded)):
            batch = task.batch(encoded, [i])
            losses.append(task.losses(model, batch).item())
            label = batch.pop("labels")
            right += int(model(**batch).logits.argmax() == label)
    modes = model.train().get_submodule(next(n for n, _ in model.named_children())).eval()
    for most in (1, 40, None):
        score = evaluate(task, model, encoded, most)
        assert score.score == right / len(TEXTS)
        assert score.loss == pytest.approx(sum(losses) / len(losses), abs=1e-6)
        assert score.rows == len(TEXTS)
    assert model.training and not modes.training


def test_no_rows(task):
    """Scores over nothing are NaN."""
    score = evaluate(task, task.model(0), task.encode(ROWS.select([])))
    assert math.isnan(score.score) and math.isnan(score.loss) and score.rows == 0


def test_names_that_are_no_use(folders):
    """An unknown task, a model that cannot be had and one that takes no text are said so."""
    with pytest.raises(UserError, match=r"did you mean 'classification'.*model\.task"):
        tasks.load("clasification")
    assert tasks.load("classification") is Classification
    with pytest.raises(UserError, match=r"'nobody/nothing' gives no tokenizer .*model\.name"):
        classification("nobody/nothing", LABELS, 8)
    pictures = classification(folders["vit"], LABELS, 8)
    with pytest.raises(UserError, match=r"gives no model for text .*model\.name"):
        pictures.model(0)
