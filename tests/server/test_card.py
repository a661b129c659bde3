"""A model card's own lines load what it is the card of: they are run as they stand."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants

import strategies
from fedlora import config, export
from fedlora.adapters import Adapter
from fedlora.config import Config
from fedlora.device import settled
from fedlora.tasks import Task, load
from server.card import card
from tests.fedlora.adapters.tiny import drawn
from tests.fedlora.page.made import directory
from tests.fedlora.tasks import talk, test_heads
from tests.fedlora.tinyllama import llama, write_gguf

LABELS = ["calm", 'it\'s "so"\nglad', "```sad\\ 😀\u202e"]
IDS = torch.arange(5, 15)[None]


def own(task: str, model: Path, labels: list[str] | None = None, **given: str) -> tuple[Task, Any]:
    """A task on a base, and an adapter with values drawn for all that a method may change."""
    tree = {"model": {"name": str(model), "task": task, **given}}
    made = load(task)(settled(Config.model_validate(tree), "cpu"), labels or [])
    fields = {"kind": "lora", "rank": 2, "target_modules": "all-linear"}
    adapter = Adapter(made.model(0), config.Adapter.model_validate(fields), seed=0)
    adapter.load(drawn(adapter))
    adapter.model.eval()
    return made, adapter


def exported(task: Task, adapter: Any, folder: Path, merged: bool, **given: str) -> Path:
    settings = {"model.name": task.pretrained.settings.name, **given}
    run = directory(folder, "run", [], settings)
    text = card(run, strategies.load("fedit"), merged=merged, labels=task.labels)
    out = folder / 'it\'s "out"'
    if merged:
        export.merge(adapter, out, export.unused(task), text)
    else:
        export.save_peft(adapter, out, settings["model.name"], task.type, export.unused(task), text)
    return out


def loaded(folder: Path) -> dict[str, Any]:
    """What the lines of README.md leave, the folder's path put in where they say so."""
    text = (folder / "README.md").read_text("utf-8")
    (block,) = re.findall(r"^```python\n(.*?)^```$", text, re.S | re.M)
    torch.manual_seed(len(text))  # nothing that is drawn then may count
    left: dict[str, Any] = {}
    exec(block.replace('"path/to/this/folder"', repr(str(folder))), left)
    return left


def same(left: dict[str, Any], task: Task, adapter: Any) -> None:
    """The model of the lines is the federated one, and its tokenizer the run's."""
    words = task.tokenizer("what colour")["input_ids"]
    assert left["tokenizer"]("what colour")["input_ids"] == words
    assert not left["model"].training
    with torch.no_grad():
        found, expected = (m(input_ids=IDS).logits for m in (left["model"], adapter.model))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("merged", [False, True], ids=["adapter", "merged"])
@pytest.mark.parametrize("name", ["roberta", "llama"])
def test_the_lines_load_a_classifier(name: str, merged: bool, tmp_path: Path) -> None:
    """Of three labels, whatever they are called, on a base that has a head for two; several rows at
    once, of several lengths."""
    base = test_heads.base(tmp_path / "base", ["no", "yes"], name, problem_type="regression")
    task, adapter = own("classification", base, LABELS)
    left = loaded(exported(task, adapter, tmp_path, merged))
    same(left, task, adapter)
    known = left["model"].config
    assert known.id2label == dict(enumerate(LABELS)) and known.num_labels == 3
    assert known.label2id == {label: i for i, label in enumerate(LABELS)}
    if merged:
        assert known.problem_type == "single_label_classification"
    texts = ["one", "a longer text than that"]
    rows = left["tokenizer"](texts, padding=True, return_tensors="pt")
    alone = left["tokenizer"](texts[0], return_tensors="pt")
    with torch.no_grad():
        together, one = (left["model"](**x).logits[0] for x in (rows, alone))
    torch.testing.assert_close(together, one, rtol=0, atol=1e-5)


@pytest.mark.parametrize("merged", [False, True], ids=["adapter", "merged"])
def test_the_lines_load_a_language_model(merged: bool, tmp_path: Path) -> None:
    base = talk.save(tmp_path / 'the "base" of `it`')
    task, adapter = own("instruction", base)
    left = loaded(exported(task, adapter, tmp_path, merged, **{"model.task": "instruction"}))
    same(left, task, adapter)
    assert left["tokenizer"].chat_template == task.tokenizer.chat_template


def test_the_lines_load_the_format_that_was_trained_on(tmp_path: Path) -> None:
    """Of a base that is stored in bf16 too; else the adapter sits on rounded weights."""
    base = talk.save(tmp_path / "base")
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(base)
    task, adapter = own("instruction", base)
    given = {"model.task": "instruction", "model.dtype": "fp32"}
    same(loaded(exported(task, adapter, tmp_path, False, **given)), task, adapter)


def test_the_lines_load_a_gguf_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which a folder of one such file need not name."""
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "cache"))
    (tmp_path / "base").mkdir()
    write_gguf(llama(), tmp_path / "base/tiny.gguf")
    task, adapter = own("instruction", tmp_path / "base")
    left = loaded(exported(task, adapter, tmp_path, False, **{"model.task": "instruction"}))
    same(left, task, adapter)
