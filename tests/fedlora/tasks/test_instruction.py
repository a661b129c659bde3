"""The instruction task, held against Transformers' own loss and single rows."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    OPTConfig,
    OPTForCausalLM,
)

from fedlora import training
from fedlora.adapters import Adapter
from fedlora.config import Config
from fedlora.errors import UserError
from fedlora.evaluation import evaluate
from fedlora.stacking import Member
from fedlora.stacking import train as train_stacked
from fedlora.streams import forked
from fedlora.tasks.encoded import Encoded
from fedlora.tasks.instruction import IGNORED, Instruction
from tests.fedlora import architectures
from tests.fedlora.tasks.talk import instruction, save, turns

TALKS = [
    turns("what colour has thing1", "it is red"),
    turns("what", "red", "colour", "green blue black it is", system="it is"),
    turns("has", "it is it is"),
    turns("what colour has thing2 thing3 thing4", "black"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("instruction"))


def encoded(task: Instruction, talks: list[Any] = TALKS) -> Encoded:
    return task.encode(Dataset.from_dict({"messages": talks, "label": [0] * len(talks)}))


@pytest.mark.parametrize("learn", ["response", "all"])
def test_a_row_s_loss_is_transformers_own(folder: Path, learn: str) -> None:
    """Each row's in a padded batch is what the model says of that row alone."""
    task = instruction(folder, data__learn=learn)
    model, rows = task.model(0), encoded(task)
    together = task.losses(model, task.batch(rows, range(len(rows))))
    for i in range(len(rows)):
        alone = model(**task.batch(rows, [i])).loss
        torch.testing.assert_close(together[i], alone, rtol=1e-5, atol=1e-6)


def test_a_mean_is_over_tokens_and_under_privacy_over_rows(folder: Path) -> None:
    """So the loss of a batch is Transformers' token mean, and a private row's share in it depends
    on no other row."""
    task, by_row = instruction(folder), instruction(folder, privacy__epsilon=3.0)
    model, rows = task.model(0), encoded(task)
    everything = list(range(len(rows)))
    batch = task.batch(rows, everything)
    share = training.shares(task, rows, everything)
    mean = (task.losses(model, batch) * share).sum()
    torch.testing.assert_close(mean.float(), model(**batch).loss, rtol=1e-5, atol=1e-6)
    assert training.shares(by_row, rows, everything).tolist() == [0.25] * 4
    found = evaluate(task, model, rows)
    assert found.loss == pytest.approx(float(model(**batch).loss), rel=1e-5)


def test_token_accuracy_is_counted_by_hand(folder: Path) -> None:
    """The score is the fraction of all answers' tokens that are the likeliest."""
    task = instruction(folder)
    model, rows = task.model(0), encoded(task)
    right = total = 0
    for i in range(len(rows)):
        batch = task.batch(rows, [i])
        guesses = model(input_ids=batch["input_ids"][:, : rows.length(i)]).logits.argmax(-1)[0]
        for position in range(1, rows.length(i)):
            if (wanted := int(batch["labels"][0, position])) != IGNORED:
                total += 1
                right += int(guesses[position - 1]) == wanted
    assert evaluate(task, model, rows).score == pytest.approx(right / total)


def test_what_is_cut_is_known_and_a_row_without_an_answer_teaches_nothing(folder: Path) -> None:
    """Rows keep max_length tokens, are counted as truncated, and one whose answer is gone has no
    share in a step, a loss of 0, and no gradient."""
    task = instruction(folder, data__max_length=8)
    model, rows = task.model(0), encoded(task)
    assert rows.truncated == 4 and {rows.length(i) for i in range(4)} == {8}
    empty = next(i for i in range(4) if task.counts(rows, [i]) == 0)
    assert task.losses(model, task.batch(rows, [empty])).tolist() == [0.0]
    assert training.shares(task, rows, [empty]).tolist() == [0.0]
    assert math.isnan(evaluate(task, model, rows.select([empty])).loss)


def adapter(task: Instruction) -> Adapter:
    config = Config.model_validate({"adapter": {"kind": "lora", "rank": 2}})
    return Adapter(task.model(0), config.adapter, 0)


def test_clients_that_share_passes_train_as_each_would_alone(folder: Path) -> None:
    """The token mean is each client's own, whosever rows are in a pass."""
    task = instruction(folder)
    made, rows = adapter(task), encoded(task)
    own = [rows.select([0, 1]), rows.select([2, 3, 0])]
    settings = Config().train.model_copy(update={"steps": 3, "batch_size": 2, "optimizer": "sgd"})
    members = [Member(made.initial(), 2.0, r, (0, "train", str(k))) for k, r in enumerate(own)]
    stacked = train_stacked(task, made, members, {"A", "B"}, settings)
    for (tensors, told), member in zip(stacked, members, strict=True):
        made.load(member.tensors, member.scale)
        alone = training.train(task, made, {"A", "B"}, member.encoded, settings, member.seed)
        assert told.loss == pytest.approx(alone.loss, rel=1e-5)
        for name, tensor in made.read({"A", "B"}).items():
            torch.testing.assert_close(tensors[name], tensor, rtol=1e-4, atol=1e-7)


def test_packed_rows_are_the_same_rows(folder: Path) -> None:
    """Fewer lines, none longer than max_length, with the same targets and the same losses: no row
    sees another."""
    task = instruction(folder, data__max_length=40, data__packing=True)
    model, rows = task.model(0), encoded(task)
    packed = task.packed(rows)
    lengths = [packed.length(i) for i in range(len(packed))]
    assert len(packed) < len(rows) and max(lengths) <= 40
    assert sum(lengths) == sum(rows.length(i) for i in range(len(rows)))
    assert evaluate(task, model, packed).loss == pytest.approx(
        evaluate(task, model, rows).loss, rel=1e-5
    )
    both = Encoded.joined([packed, task.packed(rows.select([0, 1]))])
    assert [both.length(i) for i in range(len(packed))] == lengths


def test_a_model_that_mixes_packed_rows_is_refused(folder: Path, tmp_path: Path) -> None:
    """OPT takes positions from the mask alone."""
    with forked(0, "opt"):
        network = OPTForCausalLM(
            OPTConfig(
                vocab_size=29, hidden_size=32, ffn_dim=32, num_hidden_layers=1,
                num_attention_heads=2, max_position_embeddings=64, word_embed_proj_dim=32,
            )
        )  # fmt: skip
    instruction(folder).tokenizer.save_pretrained(tmp_path)
    network.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"leave data\.packing out"):
        instruction(tmp_path, data__packing=True).model(0)
    assert instruction(tmp_path).model(0)


def test_a_model_of_transposed_layers_is_adapted_without_a_head(
    folder: Path, tmp_path: Path
) -> None:
    """GPT-2's output layer is pretrained and stays as it is: what is trained is the adapter."""
    with forked(0, "gpt2"):
        network = GPT2LMHeadModel(
            GPT2Config(vocab_size=29, n_embd=16, n_layer=1, n_head=2, n_positions=64)
        )
    instruction(folder).tokenizer.save_pretrained(tmp_path)
    network.save_pretrained(tmp_path)
    task = instruction(tmp_path)
    made = adapter(task)
    assert made.parts == {"A", "B"} and list(made.shapes.values()) == [(48, 16)]
    rows = encoded(task)
    losses = task.losses(made.model, task.batch(rows, [0, 1]))
    assert losses.shape == (2,) and bool(losses.isfinite().all())


@pytest.mark.parametrize(("kind", "causal"), [("xlnet", {}), ("bert", {"is_decoder": True})])
def test_a_model_that_reads_ahead_is_refused(
    kind: str, causal: dict[str, bool], tmp_path: Path
) -> None:
    """It would be given the answers that it is to learn."""
    settings = AutoConfig.for_model(kind, vocab_size=32, **architectures.CLASSIFIERS[kind])
    save(tmp_path)
    with forked(0, kind):
        AutoModelForCausalLM.from_config(settings).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"reads what stands behind .* given the answers"):
        instruction(tmp_path).model(0)
    if causal:
        settings.update(causal)
        settings.save_pretrained(tmp_path)
        instruction(tmp_path).model(0)
