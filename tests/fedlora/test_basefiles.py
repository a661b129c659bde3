"""What goes along with a whole model, and what stays with its base."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import constants
from transformers import AutoModelForCausalLM, AutoTokenizer

from fedlora import cli
from fedlora.basefiles import carry
from fedlora.config import Model
from fedlora.pretrained import Pretrained
from tests.fedlora.tasks import talk
from tests.fedlora.tinyllama import llama, write_gguf

TERMS = ["LICENSE", "NOTICE", "USE_POLICY.md"]
KEPT = [*TERMS, "preprocessor_config.json", "tokenizer.model", "merges.txt"]
LEFT = [
    *("README.md", "pytorch_model.bin", "model-00001-of-00002.safetensors", "tf_model.h5"),
    *("model.safetensors.index.json", "pytorch_model.bin.index.json", "quantize_config.json"),
    *("modeling_own.py", "model.gguf", ".gitattributes", "adapter_config.json"),
    *("rows.jsonl", "rows.json", "notes.txt", "optimizer.pt", "trainer_state.json"),
]


def test_what_the_run_does_not_change_goes_along(tmp_path: Path) -> None:
    """Beside what is there already; weights, code, indices, what a base says of itself stay, and
    whatever else a folder holds."""
    base, folder = tmp_path / "base", tmp_path / "merged"
    for place in (base / "onnx", folder):
        place.mkdir(parents=True)
    for name in [*KEPT, *LEFT, "config.json", "tokenizer.json", "generation_config.json"]:
        (base / name).write_text("base")
    for name in ("config.json", "tokenizer.json", "generation_config.json", "README.md"):
        (folder / name).write_text("run")
    carry([base], folder)
    found = {path.name: path.read_text() for path in folder.iterdir()}
    own = {"config.json": "run", "tokenizer.json": "run", "README.md": "run"}
    assert found == {**dict.fromkeys([*KEPT, "generation_config.json"], "base"), **own}


def test_no_link_leads_out_of_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever made a model's folder may name any file of this machine its licence. A snapshot's
    links lead into the hub's cache."""
    base, folder, cache = (tmp_path / name for name in ("base", "merged", "cache"))
    for place in (base, folder, cache):
        place.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    (tmp_path / "secret").write_text("key")
    (cache / "blob").write_text("terms")
    (base / "LICENSE").symlink_to(tmp_path / "secret")
    (base / "tokenizer.model").symlink_to("../secret")
    (base / "NOTICE").symlink_to("../cache/blob")
    carry([base], folder)
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"NOTICE": "terms"}


@pytest.mark.parametrize("own", [True, False])
def test_a_template_of_the_run_is_the_only_one(own: bool, tmp_path: Path) -> None:
    """A processor's, under its old name, would speak for the base again."""
    base, folder = tmp_path / "base", tmp_path / "merged"
    base.mkdir()
    folder.mkdir()
    (base / "chat_template.json").write_text("base")
    if own:
        (folder / "chat_template.jinja").write_text("run")
    carry([base], folder)
    assert (folder / "chat_template.json").exists() is not own


def test_a_gguf_file_has_its_terms_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the folder that it is in, not in the one that it was turned into."""
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "cache"))
    base, folder = tmp_path / "base", tmp_path / "merged"
    base.mkdir()
    folder.mkdir()
    write_gguf(llama(), base / "tiny.Q8_0.gguf")
    (base / "LICENSE").write_text("terms")
    carry(Pretrained(Model(name=str(base))).folders, folder)
    assert {p.name for p in folder.iterdir()} >= {"LICENSE", "generation_config.json"}
    assert not any(folder.glob("*.gguf")) and not any(folder.glob("*.safetensors"))


@pytest.fixture
def fedlora(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["fedlora", *arguments])
        with pytest.raises(SystemExit) as exit:
            cli.main()
        return int(exit.value.code or 0)

    return call


def test_a_merged_model_generates_and_reads_as_its_base_does(
    fedlora: Callable[..., int], tmp_path: Path
) -> None:
    """By the command: two end tokens, sampling settings that Transformers would not write down, the
    run's template, terms; and the same tokens, none cut off."""
    talk.save(tmp_path / "model")
    talk.rows(tmp_path / "rows.jsonl", count=24)
    odd = {"eos_token_id": [2, 5], "temperature": 0.6, "do_sample": False}
    (tmp_path / "model/generation_config.json").write_text(json.dumps(odd))
    for name in TERMS:
        (tmp_path / "model" / name).write_text(name)
    template = talk.TEMPLATE.replace("</s>", " </s>")
    settings = [
        *("model.name=model", "model.task=instruction", "data.name=rows.jsonl", "train.steps=1"),
        *("data.clients=2", "data.partition=iid", "data.public=0", "data.test=0.2", "run.name=run"),
        *("simulation.workers=0", "run.rounds=1", f"model.chat_template={json.dumps(template)}"),
    ]
    assert fedlora("run", *settings) == 0
    assert fedlora("export", "run", "merged", "--merge") == 0
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").generation_config
    assert whole.eos_token_id == [2, 5] and whole.temperature == 0.6 and not whole.do_sample
    assert all((tmp_path / "merged" / name).read_text() == name for name in TERMS)
    text = " ".join(["what colour has thing1"] * 200)
    base, *others = (
        AutoTokenizer.from_pretrained(tmp_path / place)
        for place in ("model", "merged", "runs/run/adapter")
    )
    for other in others:
        assert other(text).input_ids == base(text).input_ids
        assert other.backend_tokenizer.truncation is None
        assert other.special_tokens_map.items() >= base.special_tokens_map.items()
        assert other.chat_template == template
