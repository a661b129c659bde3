import json

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from fedlora import export
from fedlora.config import Config
from fedlora.errors import UserError
from fedlora.tasks.classification import Classification
from tests.fedlora.adapters.tiny import (
    ARCHITECTURES,
    KINDS,
    adapter,
    drawn,
    logits,
    model,
    residual,
)
from tests.fedlora.tasks import talk


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("frozen", [False, True], ids=["alone", "with residual"])
def test_plain_libraries_compute_what_the_adapter_does(architecture, kind, frozen, tmp_path):
    """`PeftModel.from_pretrained` and `from_pretrained` on the folders give the same logits, for
    every kind, with P, Q and D, the head included."""
    made = adapter(architecture, kind)
    made.load(drawn(made) | (residual(made) if frozen else {}))
    expected = logits(made.model)
    assert not torch.allclose(expected, logits(model(architecture)), atol=1e-2)

    export.save_peft(made, tmp_path / "adapter", "some/base", "SEQ_CLS")
    plain = PeftModel.from_pretrained(model(architecture), tmp_path / "adapter").eval()
    assert torch.allclose(logits(plain), expected, atol=1e-5)

    export.merge(made, tmp_path / "merged")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    assert torch.allclose(logits(loaded), expected, atol=1e-5)
    assert torch.equal(logits(made.model), expected)  # exporting changed nothing


def test_the_checkpoint_is_plain_lora(tmp_path):
    """Short target names, scale one (alpha = r, no rsLoRA), one rank where layers agree, the base's
    name and the task; no tensor that plain PEFT would not know."""
    made = adapter("bert", "lora", target_modules=None, rslora=True)
    made.load(drawn(made))
    export.save_peft(made, tmp_path / "adapter", "some/base", "SEQ_CLS")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "some/base"
    assert config["task_type"] == "SEQ_CLS" and config["peft_type"] == "LORA"
    assert sorted(config["target_modules"]) == ["query", "value"]
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (4, 4, False)
    assert config["rank_pattern"] == config["alpha_pattern"] == {}
    names = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {k.rpartition(".")[0].rpartition(".")[2] for k in names} == {
        "lora_A",
        "lora_B",
        "classifier",
    }


def test_a_dense_residual_becomes_factors_of_its_own_rank(tmp_path):
    """D of rank 2, held with fp32 rounding, adds rank 2 to that layer and nothing to the others."""
    made = adapter("bert", "lora")
    second = list(made.shapes)[1]
    low = residual(made, rank=2)
    dense = low[f"{second}.P"] @ low[f"{second}.Q"]
    made.load(drawn(made) | {f"{second}.D": dense})
    left, right = export.folded(made, second)
    assert left.shape[1] == right.shape[0] == 4 + 2
    assert torch.allclose(left @ right, made.delta(second), atol=1e-6)
    export.save_peft(made, tmp_path / "adapter", "some/base", "SEQ_CLS")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["r"] == 6 and second not in config["rank_pattern"]
    assert config["rank_pattern"] == config["alpha_pattern"]
    assert set(config["rank_pattern"].values()) == {4}


def test_exporting_draws_nothing(tmp_path, global_rng_untouched):
    """The global generators are where they were, although a model is built on the way."""
    made = adapter("gpt2", "lora-sb")
    export.save_peft(made, tmp_path / "adapter", "some/base", "SEQ_CLS")
    export.merge(made, tmp_path / "merged")


def test_a_tokenizer_is_written_as_it_was_before_it_cut_rows(tmp_path):
    """Libraries that read its file alone would cut every text at what the last call said."""
    talk.save(tmp_path / "model")
    tree = {"model": {"name": str(tmp_path / "model")}, "data": {"max_length": 4}}
    task = Classification(Config.model_validate(tree), ["no", "yes"])
    task.encode(Dataset.from_dict({"text": ["what colour has it " * 9], "label": [0]}))
    assert task.tokenizer.backend_tokenizer.truncation
    assert export.unused(task).backend_tokenizer.truncation is None


def test_nothing_half_written_is_left(tmp_path, monkeypatch):
    """A folder with something in it is refused and kept; when writing fails nothing is there."""
    made = adapter("bert", "lora")
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine").write_text("keep")
    with pytest.raises(UserError, match="exists already"):
        export.save_peft(made, taken, "some/base", "SEQ_CLS")
    with pytest.raises(UserError, match="exists already"):
        export.merge(made, taken)
    assert [p.name for p in taken.iterdir()] == ["mine"]

    def full(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(export, "save_file", full)
    with pytest.raises(OSError, match="disk full"):
        export.save_peft(made, tmp_path / "adapter", "some/base", "SEQ_CLS")
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]
