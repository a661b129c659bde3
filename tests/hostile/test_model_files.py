"""A model's files are somebody else's words: none makes a node load another folder of its owner,
unpickle, or fetch code."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from fedlora.config import Model
from fedlora.errors import UserError
from fedlora.pretrained import Pretrained
from tests.fedlora.tasks import talk

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def put(path: Path, **settings: Any) -> None:
    """Lay settings over those of a JSON file."""
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(known | settings))


def adapter(folder: Path, private: Path) -> None:
    """What PEFT saves: an adapter, and where its base is."""
    (folder / "config.json").unlink()
    (folder / "model.safetensors").unlink()
    put(folder / "adapter_config.json", base_model_name_or_path=str(private), peft_type="LORA")


def embedded(folder: Path, private: Path) -> None:
    """An adapter beside a whole model, loaded over it, here from a pickle."""
    put(folder / "adapter_config.json", base_model_name_or_path=str(private), peft_type="LORA")
    torch.save({}, folder / "adapter_model.bin")


def shards(folder: Path, private: Path) -> None:
    """An index whose weights are in another folder."""
    index(folder, str(private / "model.safetensors"))


def pickled_shards(folder: Path, private: Path) -> None:
    """An index of safetensors whose weights are a pickle."""
    index(folder, "weights.bin")
    torch.save({}, folder / "weights.bin")


def index(folder: Path, shard: str) -> None:
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    with safe_open(folder / "model-1.safetensors", "pt") as file:
        found = list(file.keys())
    put(
        folder / "model.safetensors.index.json",
        metadata={},
        weight_map=dict.fromkeys(found, shard),
    )


def named(folder: Path, private: Path) -> None:
    """A configuration that names the file of its weights."""
    put(folder / "config.json", transformers_weights=f"../{private.name}/model.safetensors")


def positional(folder: Path, private: Path) -> None:
    """A tokenizer made of whatever these arguments name."""
    put(folder / "tokenizer_config.json", init_inputs=[str(private / "tokenizer.json")])


def other_file(folder: Path, private: Path) -> None:
    """A tokenizer that reads another file."""
    put(folder / "tokenizer_config.json", gguf_file=str(private / "tokenizer.json"))


def kernels(folder: Path, private: Path) -> None:
    """Attention by code that is fetched from the hub."""
    put(folder / "config.json", text_config={"attn_implementation": "evil/kernel:run"})


ATTACKS = [
    *(adapter, embedded, shards, pickled_shards, named, positional, other_file, kernels),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return talk.save(tmp_path / "theirs")


@pytest.fixture
def private(tmp_path: Path) -> Path:
    """A folder of the owner's that nobody named."""
    return talk.save(tmp_path / "private", num_hidden_layers=1)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], str]:
    """Puts a folder into a cache of the hub; returns its name there."""

    def put_in(folder: Path) -> str:
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        there = tmp_path / "hub/models--evil--model"
        (there / "snapshots").mkdir(parents=True)
        folder.rename(there / "snapshots" / COMMIT)
        (there / "refs").mkdir()
        (there / "refs/main").write_text(COMMIT)
        return "evil/model"

    return put_in


def tried(name: str) -> None:
    """All that is read of a model, each by itself."""
    reads: list[Callable[[Pretrained], object]] = [
        Pretrained.tokenizer,
        Pretrained.config,
        lambda one: one.model(AutoModelForCausalLM, "anything"),
    ]
    for read in reads:
        with pytest.raises(UserError, match="is refused"):
            read(Pretrained(Model(name=name)))


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("hub", [False, True], ids=["folder", "hub"])
def test_a_model_s_files_lead_nowhere_else(
    attack: Callable[[Path, Path], None],
    hub: bool,
    folder: Path,
    private: Path,
    cache: Callable[[Path], str],
) -> None:
    """Promise: what a model's files name is loaded from the model's own folder, or not at all."""
    attack(folder, private)
    tried(cache(folder) if hub else str(folder))


def test_no_pickle_is_opened(
    folder: Path, monkeypatch: pytest.MonkeyPatch, cache: Callable[[Path], str]
) -> None:
    """Promise: weights are safetensors. Who has others is told how to convert them."""
    weights = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")

    def opened(*_: object, **__: object) -> None:
        pytest.fail("a pickle was opened")

    monkeypatch.setattr(torch, "load", opened)
    monkeypatch.setattr("transformers.modeling_utils.torch.load", opened)
    with pytest.raises(UserError, match=r"pytorch_model\.bin.*save_pretrained"):
        Pretrained(Model(name=str(folder))).model(AutoModelForCausalLM, "anything")
    with pytest.raises(UserError, match="save_pretrained"):
        Pretrained(Model(name=cache(folder))).model(AutoModelForCausalLM, "anything")


def test_an_honest_model_of_the_hub_is_loaded(folder: Path, cache: Callable[[Path], str]) -> None:
    """From the snapshot, as from a folder."""
    truth = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    found = Pretrained(Model(name=cache(folder)))
    assert found.tokenizer().chat_template == talk.TEMPLATE
    got = found.model(AutoModelForCausalLM, "anything").state_dict()
    assert all(torch.equal(got[k], t) for k, t in truth.items())
