"""What is named as a model and is none is said to be what it is, with the way out."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, ViTConfig, ViTModel

from fedlora import config, export
from fedlora.adapters import Adapter
from fedlora.config import Model
from fedlora.errors import UserError
from fedlora.pretrained import Pretrained
from tests.fedlora.adapters.tiny import drawn
from tests.fedlora.page.made import directory
from tests.fedlora.tasks import talk


def ask(place: Path, *read: Callable[[Pretrained], object]) -> str:
    """What the error says, the same whatever is read of it first."""
    readers = read or (
        Pretrained.tokenizer,
        Pretrained.config,
        lambda one: one.model(AutoModelForCausalLM, "anything"),
    )
    said = set()
    for reads in readers:
        with pytest.raises(UserError) as error:
            reads(Pretrained(Model(name=str(place))))
        said.add(str(error.value))
    (text,) = said
    return text


def test_a_run_is_to_be_exported(tmp_path: Path) -> None:
    """Itself and the adapter in it; the command is the one that does it."""
    run = directory(tmp_path / "my runs", "first", [])
    assert (run.path / "config.toml").is_file()
    (run.path / "adapter").mkdir()
    (run.path / "adapter/adapter_config.json").write_text("{}")
    for place in (run.path, run.path / "adapter"):
        text = ask(place)
        assert f"fedlora export '{run.path}' first-merged --merge" in text
        assert "--resume first" in text


@pytest.mark.parametrize("own", [True, False], ids=["ours", "another's"])
def test_an_adapter_s_words_merge_it(
    own: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the error says, run as it stands, makes a whole model of the adapter and its base: with
    the lines of our card before, where it has them."""
    base = talk.save(tmp_path / "base")
    fields = {"kind": "lora", "rank": 2, "target_modules": "all-linear"}
    task = talk.instruction(base)
    adapter = Adapter(task.model(0), config.Adapter.model_validate(fields), seed=0)
    adapter.load(drawn(adapter))
    adapter.model.eval()
    folder = tmp_path / "it's"
    lines = (
        "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM as M\n"
        "from transformers import AutoTokenizer\n"
        f"tokenizer = AutoTokenizer.from_pretrained({str(folder)!r})\n"
        f"base = M.from_pretrained({str(base)!r})\n"
        f"model = PeftModel.from_pretrained(base, {str(folder)!r})\n"
    )
    export.save_peft(
        adapter, folder, str(base), task.type, task.tokenizer, lines if own else "A card."
    )
    text = ask(folder)
    assert "holds an adapter" in text and str(base) in text
    said = text.partition("in Python: ")[2].removeprefix("its README.md loads both; then ")
    monkeypatch.chdir(tmp_path)
    exec((lines if own else "") + said, {})
    ids = torch.arange(5, 15)[None]
    whole = Pretrained(Model(name=str(tmp_path / "merged")))
    assert whole.tokenizer().chat_template == task.tokenizer.chat_template
    with torch.no_grad():
        found = whole.model(AutoModelForCausalLM, "anything")(input_ids=ids).logits
        expected = adapter.model(input_ids=ids).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_an_adapter_without_its_settings(tmp_path: Path) -> None:
    (tmp_path / "adapter_model.safetensors").touch()
    assert "adapter_model.safetensors) without its adapter_config.json" in ask(tmp_path)


def test_an_adapter_s_settings_are_somebody_s_words(tmp_path: Path) -> None:
    """Whatever they are, they are told in a line, and none is a command."""
    for text in ("[]", "{", '{"base_model_name_or_path": 3}', '{"task_type": ["x"]}'):
        (tmp_path / "adapter_config.json").write_text(text)
        assert "merge the adapter into its base" in ask(tmp_path)
    evil = "x'; import os; \u202e\n\x1b[2J"
    known = {"base_model_name_or_path": evil, "task_type": "CAUSAL_LM"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(known))
    text = ask(tmp_path)
    assert text.isprintable() and "import os" not in text.partition("in Python: ")[2]


@pytest.mark.parametrize("inner", ["0_Transformer", "checkpoint-500", "snapshots/0123abc"])
def test_a_model_in_a_folder_of_the_folder(inner: str, tmp_path: Path) -> None:
    """As sentence-transformers, a trainer and the hub's cache have them."""
    (tmp_path / inner).mkdir(parents=True)
    (tmp_path / inner / "config.json").write_text("{}")
    (tmp_path / "modules.json").write_text("[]")
    assert f"did you mean '{tmp_path / inner}'" in ask(tmp_path)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tiny.Q8_0.gguf", "model.gguf to 'tiny.Q8_0.gguf'"),
        ("model.safetensors", "to its folder, .*needs config.json"),
        ("pytorch_model.bin", "to its folder"),
        ("config.json", "to its folder"),
    ],
)
def test_a_file_is_no_folder(name: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    text = ask(tmp_path / name)
    assert re.search(said, text) and repr(str(tmp_path)) in text


def test_folders_of_other_things(tmp_path: Path) -> None:
    """What they hold is told: nothing, weights alone, a pipeline of pictures, other formats."""
    assert "no config.json (it holds nothing)" in ask(tmp_path)
    (tmp_path / "model.safetensors").touch()
    assert "it holds model.safetensors" in ask(tmp_path)
    (tmp_path / "model_index.json").touch()
    assert "diffusers" in ask(tmp_path)
    whole = talk.save(tmp_path / "onnx only")
    (whole / "model.safetensors").unlink()
    (whole / "onnx").mkdir()
    (whole / "onnx/model.onnx").touch()
    (whole / "rust_model.h5").touch()
    text = ask(whole, lambda one: one.model(AutoModelForCausalLM, "anything"))
    assert "no weights in safetensors (onnx/model.onnx, rust_model.h5)" in text


def test_a_model_of_pictures(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ViTModel(ViTConfig(**sizes, intermediate_size=16)).save_pretrained(tmp_path)
    assert "a text model" in ask(tmp_path, Pretrained.tokenizer)
