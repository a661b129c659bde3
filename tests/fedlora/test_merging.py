"""Whole models: what is tied, what is placed by padding, and what no model can hold."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaForCausalLM,
    PreTrainedModel,
)

from fedlora import config, export
from fedlora.adapters import Adapter
from fedlora.errors import UserError
from fedlora.streams import forked, stream
from tests.fedlora.adapters import tiny
from tests.fedlora.adapters.tiny import drawn, residual

SIZES = {**tiny.SIZES, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": True}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
GEMMA3 = {
    "text_config": {**SIZES, "head_dim": 8, "num_key_value_heads": 1},
    "vision_config": VISION,
}
# Model type -> (its settings, its output layer's name, a layer inside).
TIED: dict[str, tuple[dict[str, Any], str, str]] = {
    "llama": ({**SIZES, "num_key_value_heads": 1}, "lm_head", "v_proj"),
    "gpt2": (tiny.GPT2_SIZES, "lm_head", "c_fc"),
    "opt": ({**SIZES, "word_embed_proj_dim": 16, "ffn_dim": 24}, "lm_head", "v_proj"),
    "bert": ({**SIZES, "is_decoder": True}, "decoder", "value"),
    "gemma3": (GEMMA3, "lm_head", "v_proj"),
}


def saved(kind: str, folder: Path, **more: Any) -> Path:
    """A model of random weights whose output layer is tied."""
    made = AutoConfig.for_model(kind, **{**TIED[kind][0], **more})
    with forked(0, kind):
        model = AutoModelForCausalLM.from_config(made)
    embeddings = model.get_input_embeddings().weight
    assert model.get_output_embeddings().weight is embeddings
    # Logits large enough to tell, and no row of zeros, which DoRA refuses.
    embeddings.data.mul_(10).add_(0.1)
    model.save_pretrained(folder)
    return folder


def loaded(folder: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder)
    return model.eval()


def adapter(model: PreTrainedModel, names: list[str], **fields: Any) -> Adapter:
    """With values in every part, and a residual where DoRA leaves room for one."""
    told = {"kind": "lora", "rank": 3, "target_modules": names, **fields}
    made = Adapter(model, config.Adapter.model_validate(told), seed=7)
    made.model.eval()
    made.load(drawn(made) | ({} if made.dora else residual(made)))
    return made


def logits(model: Any) -> Tensor:
    ids = torch.randint(3, 30, (2, 7), generator=stream(0, "rows"))
    with torch.no_grad():
        found: Tensor = model(input_ids=ids).logits
    return found


def weights(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return set(file.keys())


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        *((kind, {"kind": "lora"}) for kind in TIED),
        ("llama", {"kind": "vera"}),
        ("gpt2", {"kind": "lora-sb"}),
        ("llama", {"kind": "lora", "dora": True}),
    ],
    ids=str,
)
def test_a_tied_output_layer_that_is_adapted_is_untied(
    kind: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    """The run's logits are those of the exported adapter and of the merged model, loaded anew; of
    which the settings say that nothing is tied."""
    base = saved(kind, tmp_path / "base")
    _, output, inner = TIED[kind]
    made = adapter(loaded(base), [output, inner], **fields)
    assert any(name.endswith(output) for name in made.shapes)
    expected = logits(made.model)
    assert not torch.allclose(expected, logits(loaded(base)), atol=1e-2)

    export.save_peft(made, tmp_path / "adapter", str(base), "CAUSAL_LM")
    plain = PeftModel.from_pretrained(loaded(base), tmp_path / "adapter").eval()
    assert torch.allclose(logits(plain), expected, atol=1e-4)

    export.merge(made, tmp_path / "merged")
    whole = loaded(tmp_path / "merged")
    assert torch.allclose(logits(whole), expected, atol=1e-4)
    assert whole.config.tie_word_embeddings is False
    assert whole.get_output_embeddings().weight is not whole.get_input_embeddings().weight


def test_what_nobody_parted_stays_tied(tmp_path: Path) -> None:
    """Its weight is written once."""
    made = adapter(loaded(saved("llama", tmp_path / "base")), ["v_proj"])
    export.merge(made, tmp_path / "merged")
    assert weights(tmp_path / "merged") == weights(tmp_path / "base")
    assert loaded(tmp_path / "merged").config.tie_word_embeddings is True


def test_a_checkpoint_with_an_output_layer_of_its_own_keeps_it(tmp_path: Path) -> None:
    """Where settings say that it is tied, and the files have another: Transformers takes that."""
    folder = saved("llama", tmp_path / "base")
    apart = loaded(folder)
    apart.set_output_embeddings(torch.nn.Linear(16, 30, bias=False))
    apart.config.tie_word_embeddings = False
    apart.save_pretrained(folder)
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**told, "tie_word_embeddings": True}))
    made = adapter(loaded(folder), ["v_proj"])
    export.merge(made, tmp_path / "merged")
    assert torch.allclose(logits(loaded(tmp_path / "merged")), logits(made.model), atol=1e-4)


class Bound(LlamaForCausalLM):
    """Ties its output layer, whatever its settings say."""

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        return {"lm_head.weight": "model.embed_tokens.weight"}


def test_what_no_whole_model_can_hold_is_refused(tmp_path: Path) -> None:
    """And nothing is left; the adapter alone can be exported."""
    base = saved("llama", tmp_path / "base")
    made = adapter(Bound.from_pretrained(base), ["v_proj", "lm_head"])
    with pytest.raises(UserError, match=r"Bound ties lm_head.weight .*without --merge"):
        export.merge(made, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    export.save_peft(made, tmp_path / "adapter", str(base), "CAUSAL_LM")


@pytest.mark.parametrize(("kind", "padding"), [("roberta", 1), ("llama", 4)])
def test_padding_says_where_rows_end_and_not_where_positions_begin(
    kind: str, padding: int, tmp_path: Path
) -> None:
    """RoBERTa counts positions from the token that its settings pad with as it is made, a Llama's
    head reads at the last token that is no padding: a run's tokenizer that pads with another moves
    the second and not the first."""
    sizes = {**SIZES, "pad_token_id": 1, "num_labels": 3}
    with forked(0, kind):
        made = AutoConfig.for_model(kind, **sizes)
        AutoModelForSequenceClassification.from_config(made).save_pretrained(tmp_path / "base")
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base").eval()
    base.config.pad_token_id = 4
    own = adapter(base, ["query"] if kind == "roberta" else ["v_proj"])
    export.merge(own, tmp_path / "merged")
    whole = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    assert torch.allclose(logits(whole), logits(own.model), atol=1e-5)
    assert whole.config.pad_token_id == padding
