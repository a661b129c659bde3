"""What is asked of a model's files, wherever they are."""

from types import SimpleNamespace

import pytest
from safetensors.torch import save_file
from transformers import AutoConfig, AutoTokenizer

from fedlora import modelfiles
from fedlora.config import Model
from fedlora.pretrained import Pretrained
from tests.fedlora.adapters.tiny import model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_a_revision_is_that_of_all_files(monkeypatch, tmp_path):
    """Tokenizer, configuration and weights are of the same state of the hub's repository: what a
    branch was when the first of them was read."""
    asked, read = [], []
    folder = tmp_path / COMMIT
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    save_file({}, folder / "model.safetensors")

    def downloaded(name, revision, allow_patterns, **_):
        asked.append((name, revision, "*.safetensors" in allow_patterns))
        return str(folder)

    def note(place, **_):
        read.append(place)
        return made

    def weights(place, **_):
        read.append(place)
        told = ("missing_keys", "unexpected_keys", "mismatched_keys")
        return model("bert"), dict.fromkeys(told, ())

    known = {"all_special_ids": [], "added_tokens_decoder": {}, "vocab_size": 3}
    ids = dict.fromkeys(("pad_token_id", "eos_token_id", "unk_token_id"))
    made = SimpleNamespace(**known, **ids)
    made.get_text_config = lambda: made
    monkeypatch.setattr(modelfiles, "snapshot_download", downloaded)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", note)
    monkeypatch.setattr(AutoConfig, "from_pretrained", note)
    for given, meant in (("v1.5", "v1.5"), (None, "main")):
        pretrained = Pretrained(Model(name="owner/model", revision=given))
        pretrained.tokenizer()
        pretrained.config()
        pretrained.model(SimpleNamespace(from_pretrained=weights), "anything")
        assert asked == [("owner/model", meant, False), ("owner/model", COMMIT, True)]
        assert read == [folder] * 4  # the configuration, for the tokenizer too
        asked.clear()
        read.clear()


@pytest.mark.parametrize("revision", ["../main", "a/../b", "/etc/passwd", "", "a//b", ".", "-x"])
def test_a_revision_leads_to_no_other_file(revision):
    """The cache of the hub looks for a branch in a file of that name."""
    with pytest.raises(ValueError, match="revision"):
        Model(revision=revision)
    assert Model(revision="refs/pr/1-v1.5_x").revision == "refs/pr/1-v1.5_x"


@pytest.mark.parametrize("name", ["../up.gguf", "/etc/x.gguf", "a/b.gguf", "model.bin"])
def test_a_gguf_file_is_one_of_the_models_own(name):
    """A run's configuration comes from elsewhere, and leads to no other file of a node."""
    with pytest.raises(ValueError, match="gguf"):
        Model(gguf=name)
