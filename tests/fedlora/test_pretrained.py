"""What is asked of a model's files, wherever they are."""

from types import SimpleNamespace

import pytest
from transformers import AutoConfig, AutoTokenizer

from fedlora.config import Model
from fedlora.pretrained import Pretrained


def test_a_revision_is_that_of_all_files(monkeypatch):
    """Tokenizer, configuration and weights are of the same state of the hub's repository."""
    asked = []

    def note(**arguments):
        asked.append((arguments["pretrained_model_name_or_path"], arguments["revision"]))
        return SimpleNamespace(pad_token="[PAD]", modules=list)

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", note)
    monkeypatch.setattr(AutoConfig, "from_pretrained", note)
    for given, meant in (("v1.5", "v1.5"), (None, "main")):
        pretrained = Pretrained(Model(name="owner/model", revision=given))
        pretrained.tokenizer()
        pretrained.config()
        pretrained.model(SimpleNamespace(from_pretrained=note), "anything")
        assert asked == [("owner/model", meant)] * 3
        asked.clear()


@pytest.mark.parametrize("name", ["../up.gguf", "/etc/x.gguf", "a/b.gguf", "model.bin"])
def test_a_gguf_file_is_one_of_the_models_own(name):
    """A run's configuration comes from elsewhere, and leads to no other file of a node."""
    with pytest.raises(ValueError, match="gguf"):
        Model(gguf=name)
