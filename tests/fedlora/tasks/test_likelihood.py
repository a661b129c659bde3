"""What a language model says of tokens, against what Transformers computes of all at once."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    OPTConfig,
    PreTrainedConfig,
)

from fedlora.streams import forked
from fedlora.tasks import likelihood as file
from fedlora.tasks.likelihood import IGNORED, likelihood
from fedlora.training import train
from tests.fedlora.tasks.talk import save
from tests.fedlora.trained import LOOPS, SGD, adapter, rows, start, task, trained

V, B, T, CHUNK = 50, 3, 12, 7  # words, rows, tokens of a row, positions of a chunk at most
GPT = {"vocab_size": V, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16}
SMALL = {
    "vocab_size": V, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 2, "max_position_embeddings": 16,
}  # fmt: skip
OPT = {**SMALL, "ffn_dim": 16, "word_embed_proj_dim": 16}
# A tail of one layer; transposed ones; with a softcap, scales; a body within a body; a head of many
# layers. Gemma's logits are made large enough for the softcap to bend them.
MODELS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SMALL),
    "gpt2": GPT2Config(**GPT),
    "gemma2": Gemma2Config(**SMALL, num_key_value_heads=2, head_dim=8, final_logit_softcapping=0.3),
    "granite": GraniteConfig(**SMALL, logits_scaling=4.0),
    "cohere": CohereConfig(**SMALL, logit_scale=0.2),
    "opt": OPTConfig(**OPT),
    "bert": BertConfig(**SMALL, is_decoder=True),
}


def tokens() -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, labels), (B, T) each: rows that are learnt in other places, one of them in none."""
    with forked(0, "tokens"):
        ids = torch.randint(3, V, (B, T))
    labels = ids.clone()
    labels[0, :7] = labels[0, 10:] = labels[1, 3:] = labels[2] = IGNORED
    return ids, labels


def places(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions before what is learnt, and that."""
    after = F.pad(labels[:, 1:], (0, 1), value=IGNORED).flatten()
    where = (after != IGNORED).nonzero()[:, 0]
    return where, after[where]


@pytest.mark.parametrize("name", MODELS)
def test_losses_and_gradients_are_transformers_own(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each row's loss in float64, whatever the model does to its logits, and each row's own
    gradient; and no more logits are made at once than a chunk has."""
    monkeypatch.setattr(file, "LOGITS", CHUNK * V)
    made: list[int] = []
    compared = file._compared

    def spied(logits: torch.Tensor, targets: torch.Tensor) -> Any:
        made.append(len(logits))
        return compared(logits, targets)

    monkeypatch.setattr(file, "_compared", spied)
    with forked(0, name):
        model: Any = AutoModelForCausalLM.from_config(MODELS[name]).double().eval()
    words = model.get_input_embeddings().weight
    model.requires_grad_(False)
    model.get_output_embeddings().weight = torch.nn.Parameter(words.clone(), False)  # not tied
    words.requires_grad_()
    ids, labels = tokens()
    where, targets = places(labels)
    losses, right = likelihood(model, {"input_ids": ids}, where, targets)
    assert max(made) <= CHUNK and sum(made) == len(where) and losses.dtype == torch.float64
    for i in range(2):
        own = where // T == i
        (found,) = torch.autograd.grad(losses[own].mean(), words, retain_graph=True)
        output = model(input_ids=ids[i : i + 1], use_cache=False)
        expected = F.cross_entropy(output.logits[0, where[own] % T], targets[own])
        (truth,) = torch.autograd.grad(expected, words)
        torch.testing.assert_close(losses[own].mean(), expected, rtol=1e-12, atol=0)
        torch.testing.assert_close(found, truth, rtol=1e-9, atol=1e-14)
        loss = model(input_ids=ids[i : i + 1], labels=labels[i : i + 1], use_cache=False).loss
        torch.testing.assert_close(expected, loss.double(), rtol=1e-5, atol=0)  # that is fp32
        guesses = output.logits[0, where[own] % T].argmax(-1)
        assert torch.equal(right[own], guesses == targets[own])


def test_without_gradients_none_are_made() -> None:
    with forked(0, "llama"):
        model = AutoModelForCausalLM.from_config(MODELS["llama"]).eval()
    ids, labels = tokens()
    where, targets = places(labels)
    with torch.inference_mode():
        losses, _ = likelihood(model, {"input_ids": ids}, where, targets)
    assert not losses.requires_grad and bool(losses.isfinite().all())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("likelihood"))


def test_an_adapted_output_layer_is_trained_by_each_loop(folder: Path) -> None:
    """Its tail has gradients, of each client and row its own: the model's own way is taken."""
    own = task(folder)
    made = adapter(own, target_modules=["q_proj", "lm_head"])
    found = {loop: trained(loop, own, made) for loop in LOOPS}
    for tensors in found.values():
        assert (tensors["lm_head.A"] - start(made)["lm_head.A"]).abs().max() > 1e-4
    for name, tensor in found["plain"].items():
        torch.testing.assert_close(found["stacked"][name], tensor, rtol=1e-4, atol=1e-6)


def test_chunks_change_nothing_of_training(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = task(folder)
    made = adapter(own)
    whole = {loop: trained(loop, own, made) for loop in LOOPS}
    monkeypatch.setattr(file, "LOGITS", 1)
    for loop in LOOPS:
        for name, tensor in trained(loop, own, made).items():
            torch.testing.assert_close(tensor, whole[loop][name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("positions", [1, 5, 1000])
def test_a_steady_row_s_bits_are_its_own(
    folder: Path, positions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever a chunk ends: the other rows of a pass, what of them is learnt, and a row's place
    among them move no bit of its loss."""
    own = task(folder)
    own.steady = True
    model, encoded = own.model(0), rows(own)
    words = model.config.vocab_size
    monkeypatch.setattr(file, "LOGITS", positions * 2 * words)
    widest = own.batch(encoded, [3, 0])
    batch = {k: t[[0, 0]] for k, t in widest.items()}
    batch["labels"] = batch["labels"].clone()
    batch["input_ids"] = batch["input_ids"].clone()
    batch["input_ids"][1, :4] = 7
    batch["labels"][1] = IGNORED
    alone = own.losses(model, {k: t[[0, 0]] for k, t in widest.items()})[0]
    first = own.losses(model, batch)[0]
    second = own.losses(model, {k: t.flip(0) for k, t in batch.items()})[1]
    assert alone == first == second


def test_rows_without_targets_train_nothing(folder: Path) -> None:
    """Their gradient is zero, and there is one."""
    own = task(folder)
    made = adapter(own)
    blank = own.blank(8)
    before = {k: t.clone() for k, t in made.read({"A", "B"}).items()}
    told = train(own, made, {"A", "B"}, blank, SGD, (0,))
    assert told.loss == 0.0
    assert all(torch.equal(t, before[k]) for k, t in made.read({"A", "B"}).items())
