import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from fedlora import config
from fedlora.adapters.targets import head, shortest, targets
from fedlora.errors import UserError
from tests.fedlora.adapters.tiny import ARCHITECTURES, SIZES, model


def adapter(**fields: object) -> config.Adapter:
    return config.Adapter(**{"kind": "lora", "rank": 4, **fields})


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_defaults_are_pefts(architecture):
    """Without target_modules the layers are those that PEFT picks for the architecture, and shapes
    are (outputs, inputs), Conv1D included."""
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import LoraLayer

    found = targets(model(architecture), adapter())
    peft = get_peft_model(model(architecture), LoraConfig(r=4, task_type="SEQ_CLS"))
    layers = {k: m for k, m in peft.base_model.model.named_modules() if isinstance(m, LoraLayer)}
    assert found == {k: (m.out_features, m.in_features) for k, m in layers.items()}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_head_is_found_and_never_adapted(architecture):
    """The head is what stands beside the pretrained body, and "all-linear" leaves it out."""
    assert head(model(architecture)) == ["classifier" if "bert" in architecture else "score"]
    found = targets(model(architecture), adapter(target_modules="all-linear"))
    assert found and not any(k.startswith(("classifier", "score")) for k in found)


def test_a_language_models_output_is_neither_head_nor_target():
    """Its output layer is pretrained: not trained in full, and not among all linear layers."""
    fields = {k: v for k, v in SIZES.items() if k != "num_labels"}
    with torch.device("meta"):
        lm = LlamaForCausalLM(LlamaConfig(**fields))
    assert head(lm) == []
    found = targets(lm, adapter(target_modules="all-linear"))
    assert len(found) == 14 and "lm_head" not in found


def test_it_works_without_weights():
    """A model on the meta device has the same targets."""
    with torch.device("meta"):
        empty = BertForSequenceClassification(BertConfig(**SIZES))
    fields = adapter(target_modules="all-linear")
    assert targets(empty, fields) == targets(model("bert"), fields)
    assert targets(empty, fields)["bert.encoder.layer.0.output.dense"] == (16, 24)


def test_an_unknown_architecture_gets_every_linear_layer():
    """Where PEFT's table has no entry."""
    unknown = model("bert")
    unknown.config.model_type = "unheard-of"
    assert targets(unknown, adapter()) == targets(unknown, adapter(target_modules="all-linear"))


def test_names_match_as_in_peft():
    """A list holds whole paths or their ends, a string is a pattern of the whole path."""
    bert = model("bert")
    ends = targets(bert, adapter(target_modules=["output.dense"]))
    assert all(k.endswith("output.dense") for k in ends) and len(ends) == 4
    pattern = targets(bert, adapter(target_modules=r".*layer\.1\..*\.(query|key)"))
    assert [k.rpartition(".")[2] for k in pattern] == ["query", "key"]


def test_short_names_select_the_same_layers():
    """The last components of the paths where they suffice, else the paths."""
    bert = model("bert")
    assert shortest(bert, list(targets(bert, adapter()))) == ["query", "value"]
    some = list(targets(bert, adapter(target_modules=["layer.0.output.dense"])))
    assert shortest(bert, some) == some


def test_what_matches_nothing_lists_the_candidates():
    """The error names what could have been meant in this model."""
    with pytest.raises(UserError, match=r"q_proj.*dense, key, query, value"):
        targets(model("bert"), adapter(target_modules=["q_proj"]))
    with pytest.raises(UserError, match=r"word_embeddings.*Embedding"):
        targets(model("bert"), adapter(target_modules=["word_embeddings"]))


def test_a_string_that_holds_names_is_told_to_be_a_list():
    """And one that is no pattern at all."""
    said = r"pattern of the whole path; .*target_modules = \[\"query\"{}\]"
    for string, rest in (("query", ""), ("query, value", ', "value"'), ("query,qury", "")):
        with pytest.raises(UserError, match=said.format(rest)):
            targets(model("bert"), adapter(target_modules=string))
    with pytest.raises(UserError, match=r"\*query.*wrong one \(nothing to repeat"):
        targets(model("bert"), adapter(target_modules="*query"))


@pytest.mark.parametrize("kind", ["lora", "lora-sb"])
def test_a_rank_above_the_smaller_side_is_refused(kind):
    """The error names the layer, its shape and the largest rank; VeRA's rank may be larger."""
    with pytest.raises(UserError, match=r"rank = 17.*layer.0.*query.*\(16, 16\).*16"):
        targets(model("bert"), adapter(kind=kind, rank=17))
    assert targets(model("bert"), adapter(kind=kind, rank=16))
    assert targets(model("bert"), adapter(kind="vera", rank=17))
