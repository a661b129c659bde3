"""Checkpoints that are not whole: what may be lacking is drawn, trained and exported; for anything
else nobody trains around what was drawn at random."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf as writing
import pytest
import torch
from huggingface_hub import constants
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import (
    AlbertConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    GPT2Config,
    LlamaConfig,
    ModernBertConfig,
    PretrainedConfig,
    RobertaConfig,
)

from fedlora import config, export
from fedlora.adapters import Adapter
from fedlora.config import Model
from fedlora.errors import UserError
from fedlora.pretrained import Pretrained
from fedlora.streams import forked
from tests.fedlora.adapters.tiny import GPT2_SIZES, SIZES, drawn, logits, rows
from tests.fedlora.tinyllama import llama, write_gguf

Tensors = dict[str, torch.Tensor]
CLASSES, WORDS, LM = AutoModelForSequenceClassification, AutoModelForMaskedLM, AutoModelForCausalLM
ENDS: dict[str, Any] = {"cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}
DISTIL: dict[str, Any] = {
    **{"vocab_size": 30, "dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 2},
    **{"max_position_embeddings": 20, "num_labels": 3},
}
# What was saved; as what it is loaded; what is drawn of it.
TASKS: dict[str, tuple[PretrainedConfig, Any, list[str]]] = {
    "bert": (BertConfig(**SIZES), WORDS, ["bert.pooler", "classifier"]),
    "albert": (AlbertConfig(**SIZES, embedding_size=8), WORDS, ["albert.pooler", "classifier"]),
    "deberta": (DebertaV2Config(**SIZES), WORDS, ["classifier", "pooler"]),
    "bert, body": (BertConfig(**SIZES), AutoModel, ["classifier"]),
    "roberta": (RobertaConfig(**SIZES), WORDS, ["classifier"]),
    "distilbert": (DistilBertConfig(**DISTIL), WORDS, ["classifier", "pre_classifier"]),
    "modernbert": (ModernBertConfig(**SIZES, **ENDS), WORDS, ["classifier"]),
    "llama": (LlamaConfig(**SIZES), LM, ["score"]),
    "gpt2": (GPT2Config(**GPT2_SIZES), LM, ["score"]),
}


def saved(folder: Path, made: PretrainedConfig, kind: Any) -> Path:
    with forked(0, "weights"):
        kind.from_config(made).save_pretrained(folder)
    return folder


def load(folder: Path, kind: Any = CLASSES, **settings: Any) -> Any:
    return Pretrained(Model(name=str(folder), **settings)).load(kind, "anything")


def changed(folder: Path, change: Callable[[Tensors], object], **settings: Any) -> None:
    """The same checkpoint with other weights, or other settings."""
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    known = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(known | settings))


@pytest.mark.parametrize("name", TASKS)
def test_a_head_and_a_pooler_may_be_lacking(name: str, tmp_path: Path) -> None:
    """They alone are drawn, whatever the checkpoint was saved as."""
    made, kind, expected = TASKS[name]
    found = load(saved(tmp_path, made, kind))
    assert sorted({k.rpartition(".")[0].removesuffix(".dense").removesuffix(".out_proj")
                   for k in found.lacking}) == expected  # fmt: skip


@pytest.mark.parametrize("head", ["trained", "frozen"])
@pytest.mark.parametrize("name", ["bert", "albert", "deberta"])
def test_a_drawn_pooler_is_exported(name: str, head: str, tmp_path: Path) -> None:
    """Each load of the exported adapter and of the merged model, whatever is drawn as the base is
    loaded, gives the logits of the federated model."""
    made, kind, _ = TASKS[name]
    base = saved(tmp_path / "base", made, kind)
    fields = {"kind": "lora", "rank": 4, "target_modules": "all-linear", "head": head}
    with forked(0, "head"):
        own = Adapter(load(base).model, config.Adapter.model_validate(fields), seed=0)
    poolers = [k for k in own.initial() if "pooler" in k]
    assert len(poolers) == 2 and all(k.startswith("head.") for k in poolers)
    own.load(drawn(own))
    own.model.eval()
    expected = logits(own.model)
    export.save_peft(own, tmp_path / "adapter", str(base), "SEQ_CLS")
    export.merge(own, tmp_path / "merged")
    for seed in (1, 2):
        torch.manual_seed(seed)
        plain = CLASSES.from_pretrained(base, num_labels=3)
        loaded = PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
        torch.testing.assert_close(logits(loaded), expected, rtol=0, atol=1e-5)
        merged = CLASSES.from_pretrained(tmp_path / "merged").eval()
        torch.testing.assert_close(logits(merged), expected, rtol=0, atol=1e-5)


def lost(weights: Tensors, ending: str) -> str:
    name = next(k for k in weights if k.endswith(ending))
    del weights[name]
    return name


def halved(weights: Tensors, ending: str) -> str:
    name = next(k for k in weights if k.endswith(ending))
    weights[name] = weights[name][: len(weights[name]) // 2].clone()
    return name


@pytest.mark.parametrize(
    ("name", "change", "settings", "said"),
    [
        ("bert", lambda w: lost(w, "layer.1.output.dense.weight"), {}, r"lacks bert\.encoder"),
        ("bert", lambda w: lost(w, "embeddings.LayerNorm.weight"), {}, r"lacks bert\.embeddings"),
        ("bert", lambda w: lost(w, "word_embeddings.weight"), {}, "lacks .*word_embeddings"),
        ("bert, body", lambda w: lost(w, "pooler.dense.bias"), {}, r"lacks bert\.pooler"),
        ("bert, body", lambda w: halved(w, "pooler.dense.bias"), {}, r"pooler.*\(8, not 16\)"),
        ("bert", lambda w: None, {"intermediate_size": 32}, r"\(24 × 16, not 32 × 16\).* and 2 m"),
        ("bert", lambda w: None, {"max_position_embeddings": 24}, r"\(20 × 16, not 24 × 16\)"),
        ("bert", lambda w: None, {"vocab_size": 31}, r"\(30 × 16, not 31 × 16\)"),
        ("bert", lambda w: None, {"num_hidden_layers": 3}, r"lacks .*layer\.2.* and 12 more"),
        ("bert", lambda w: None, {"num_hidden_layers": 1}, r"no place for .*layer\.1"),
        ("bert, body", lambda w: None, {"num_hidden_layers": 1}, r"no place for .*layer\.1"),
        ("distilbert", lambda w: None, {"n_layers": 1}, r"no place for .*layer\.1"),
        ("gpt2", lambda w: None, {"n_layer": 1}, r"no place for .*h\.1"),
        ("llama", lambda w: None, {"num_hidden_layers": 1}, r"no place for .*layers\.1"),
        ("llama", lambda w: lost(w, "model.norm.weight"), {}, r"lacks model\.norm"),
        ("llama", lambda w: halved(w, "1.self_attn.q_proj.weight"), {}, r"\(8 × 16, not 16 × 16\)"),
        (
            "llama",
            lambda w: w.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(16)}),
            {},
            r"no place for .*q_proj\.bias",
        ),
    ],
)
def test_a_body_is_whole(
    name: str, change: Callable[[Tensors], object], settings: Any, said: str, tmp_path: Path
) -> None:
    """Weights that lack, of other sizes or left over are named, a few and how many."""
    made, kind, _ = TASKS[name]
    folder = saved(tmp_path, made, kind)
    assert load(folder)
    changed(folder, change, **settings)
    with pytest.raises(UserError, match=f"no whole .*{said}"):
        load(folder)


@pytest.mark.parametrize("lacking", ["lm_head.weight", "layers.1.mlp.up_proj.weight"])
def test_nothing_of_a_language_model_is_drawn(lacking: str, tmp_path: Path) -> None:
    """Not its output layer either, where that is not tied; a tied one needs no weights."""
    folder = saved(tmp_path / "own", LlamaConfig(**SIZES), LM)
    changed(folder, lambda w: lost(w, lacking))
    with pytest.raises(UserError, match=f"it lacks .*{lacking}"):
        load(folder, LM)
    tied = saved(tmp_path / "tied", LlamaConfig(**SIZES, tie_word_embeddings=True), AutoModel)
    assert load(tied, LM).lacking == set()


def test_other_things_of_a_checkpoint_are_left_alone(tmp_path: Path) -> None:
    """The buffers of older ones, a layer of another kind behind the last, parts of other tasks."""
    folder = saved(tmp_path, LlamaConfig(**SIZES), LM)
    other = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
        "model.layers.0.self_attn.masked_bias": torch.tensor(-1e4),
        "model.layers.0.self_attn.bias": torch.ones(1, 1, 20, 20),
        "model.layers.2.input_layernorm.weight": torch.ones(16),
        "model.layers.2.eh_proj.weight": torch.ones(16, 32),
        "vision.layers.5.weight": torch.ones(3),
    }
    changed(folder, lambda w: w.update(other))
    assert load(folder).lacking == {"score.weight"} and load(folder, LM).lacking == set()


def test_a_gguf_file_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that it lacks is drawn and kept in the cache."""
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "cache"))
    add = writing.GGUFWriter.add_tensor

    def some(self: Any, name: str, *args: Any, **words: Any) -> None:
        if name != "blk.1.ffn_up.weight":
            add(self, name, *args, **words)

    monkeypatch.setattr(writing.GGUFWriter, "add_tensor", some)
    write_gguf(llama(), tmp_path / "tiny.gguf")
    for _ in range(2):
        with pytest.raises(UserError, match=r"it lacks model\.layers\.1\.mlp\.up_proj"):
            load(tmp_path, LM)
    assert not list((tmp_path / "cache/fedlora").iterdir())


def test_shards_are_whole(tmp_path: Path) -> None:
    """One that is gone, cut short or another's is said, with its name."""
    llama().save_pretrained(tmp_path, max_shard_size="10KB")
    assert load(tmp_path, LM)
    shard = sorted(tmp_path.glob("*.safetensors"))[3]
    whole = shard.read_bytes()
    for wrong in (whole[:-9], b"version https://git-lfs.github.com/spec/v1\n", b""):
        shard.write_bytes(wrong)
        with pytest.raises(UserError, match=f"{shard.name}.*cut short or damaged"):
            load(tmp_path, LM)
    shard.unlink()
    with pytest.raises(UserError, match=f"{shard.name}.* is not there"):
        load(tmp_path, LM)
    (weights := load_file(sorted(tmp_path.glob("*.safetensors"))[0])).popitem()
    save_file(weights, shard, metadata={"format": "pt"})
    with pytest.raises(UserError, match="it lacks model"):
        load(tmp_path, LM)


def test_a_quantised_body_is_whole(tmp_path: Path) -> None:
    """Its layers are made of whatever size the checkpoint has, which nobody compares."""
    folder = saved(tmp_path, LlamaConfig(**{**SIZES, "intermediate_size": 64}), LM)
    changed(folder, lambda w: None, intermediate_size=128)
    for form in ("4bit", "8bit"):
        with pytest.raises(UserError, match=r"\(64 × 16, not 128 × 16\)"):
            load(folder, LM, quantize=form)


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert"])
def test_a_head_is_never_quantised(name: str, tmp_path: Path) -> None:
    """Nor is a pooler: both may be trained, and are fp32."""
    made, kind, _ = TASKS[name]
    folder = saved(tmp_path, made, kind)
    fields = {"kind": "lora", "rank": 2}
    for form in ("4bit", "8bit"):
        model = load(folder, quantize=form, dtype="bf16").model
        own = Adapter(model, config.Adapter.model_validate(fields), seed=0)
        assert {t.dtype for t in own.head().values()} == {torch.float32}
        own.model(input_ids=rows()).logits.sum().backward()
        assert all(p.grad is not None for p in own.trainable({"head"}))


@pytest.mark.parametrize("wrong", ["nan", "inf"])
def test_weights_are_numbers(wrong: str, tmp_path: Path) -> None:
    """Else all that is trained is none, and nothing says why."""
    folder = saved(tmp_path, LlamaConfig(**SIZES), LM)
    changed(folder, lambda w: w["model.layers.1.mlp.up_proj.weight"][0].fill_(float(wrong)))
    with pytest.raises(UserError, match=r"NaN or infinity, in model\.layers\.1\.mlp\.up_proj"):
        load(folder, LM)
