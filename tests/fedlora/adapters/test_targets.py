import pytest
import torch
from transformers import (
    AutoConfig,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
)

from fedlora import config
from fedlora.adapters.targets import head, shortest, targets
from fedlora.errors import UserError
from tests.fedlora.adapters.tiny import ARCHITECTURES, SIZES, model
from tests.fedlora.architectures import AUTO, table


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


def test_every_name_of_a_list_has_to_match():
    """One that is mistyped would adapt less than was asked for."""
    with pytest.raises(UserError, match=r'of which \["valu"\] matches no module.*dense, key'):
        targets(model("bert"), adapter(target_modules=["query", "valu"]))
    with pytest.raises(UserError, match="classifier is the head, which is trained in full"):
        targets(model("bert"), adapter(target_modules=["query", "classifier"]))


def test_a_layer_with_two_names_is_refused():
    """PEFT would put an adapter in one of its places; in a block that is in two places it is in
    both."""
    twice = model("bert")
    layers = twice.bert.encoder.layer
    layers[1].attention.self.value = layers[0].attention.self.value
    with pytest.raises(UserError, match=r"layer.0.*value, which is .*layer.1.*value too"):
        targets(twice, adapter())
    again = model("bert")
    again.bert.encoder.layer[1] = again.bert.encoder.layer[0]
    assert len(targets(again, adapter())) == 2


def empty(kind, task="instruction"):
    with torch.device("meta"):
        settings = AutoConfig.for_model(kind, **table(task)[kind])
        return AUTO[task].from_config(settings)


@pytest.mark.parametrize(
    ("kind", "left"),
    [
        ("phimoe", "router"),  # a Linear by its class, that gives three tensors
        ("qwen2_moe", "shared_expert_gate"),  # one output
        ("deepseek_v3", "down_proj"),  # PEFT takes the name for the experts'
        ("falcon_h1", "out_proj"),  # a kernel reads its weight
    ],
)
def test_what_cannot_be_adapted_is_left_out_unless_it_is_named(kind, left):
    """Of all linear layers and of the default; named, it is an error."""
    own = empty(kind)
    assert any(name.endswith(left) for name, _ in own.named_modules())
    for names in ("all-linear", None):
        assert not any(k.endswith(left) for k in targets(own, adapter(target_modules=names)))
    with pytest.raises(UserError, match=left):
        targets(own, adapter(target_modules=[left]))


def test_of_a_model_that_sees_what_reads_is_adapted():
    """Its layers have the same names, and no text comes to the others."""
    own = empty("gemma3")
    assert any("vision" in k and k.endswith("q_proj") for k, _ in own.named_modules())
    for names in ("all-linear", None):
        found = targets(own, adapter(target_modules=names))
        assert found and all("language_model" in k for k in found)


@pytest.mark.parametrize("kind", ["lora", "lora-sb"])
def test_a_rank_above_the_smaller_side_is_refused(kind):
    """The error names the layer, its shape and the largest rank; VeRA's rank may be larger."""
    with pytest.raises(UserError, match=r"rank = 17.*layer.0.*query.*\(16, 16\).*16"):
        targets(model("bert"), adapter(kind=kind, rank=17))
    assert targets(model("bert"), adapter(kind=kind, rank=16))
    assert targets(model("bert"), adapter(kind="vera", rank=17))
