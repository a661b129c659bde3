"""Every architecture trains as its own loop would, or says what is in the way; and what leaves is
what was trained."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor

from fedlora import config, export, stacking, training
from fedlora.adapters import Adapter
from fedlora.reached import reached
from tests.fedlora.architectures import AUTO, CLASSIFIERS, SPEAKERS, task
from tests.fedlora.tasks.talk import turns
from tests.fedlora.trained import apart

# What is quick, and differs: the others are slow to try by their number.
QUICK = {
    "classification": [
        "albert",
        "bart",
        "convbert",
        "gemma3",
        "longformer",
        "opt",
        "roberta",
        "xlnet",
    ],
    "instruction": ["bert", "deepseek_v3", "falcon", "gemma3", "mamba2", "phimoe", "xglm"],
}
# A layer that is not given the batch's rows, of those whose layers all are linear ones.
APART = {
    "convbert": "to which it is padded",
    "fnet": "to which it is padded",
    "longformer": "attention.self.query",
    "opt": "fc1",
    "qwen2_moe": "shared_expert.gate_proj",
    "xlnet": "ff.layer_1",
}
# Nobody encodes; Mamba takes the layer's weights past it.
MISSED = {"bart": "encoder_attn", "mamba": "dt_proj"}
SGD = config.Train(optimizer="sgd", lr=0.05, batch_size=3, steps=2, clip=1.0)
TEXTS = ["what colour has thing1", "it is red", "thing2 is blue what", "green is it is what"]


def cases() -> list[Any]:
    found = []
    for name, kinds in (("classification", CLASSIFIERS), ("instruction", SPEAKERS)):
        for kind in kinds:
            marks = [] if kind in QUICK[name] else [pytest.mark.slow]
            found.append(pytest.param(name, kind, marks=marks))
    return found


def rows(own: Any, turn: int) -> Any:
    """Four rows of a client."""
    if own.kind == "labelled":
        texts = [" ".join([text] * (turn + 1)) for text in TEXTS]
        return own.encode(Dataset.from_dict({"text": texts, "label": [0, 1, 1, 0]}))
    asked = [turns(" ".join(["what"] * (2 + i + turn)), text) for i, text in enumerate(TEXTS)]
    return own.encode(Dataset.from_dict({"messages": asked}))


def logits(model: Any) -> Tensor:
    ids = torch.tensor([[5, 9, 12, 7, 3, 2], [8, 6, 11, 4, 10, 2]])
    with torch.no_grad():
        found: Tensor = model(input_ids=ids).logits
    return found


@pytest.mark.parametrize(("name", "kind"), cases())
def test_an_architecture_trains_and_leaves_as_it_was_trained(
    name: str, kind: str, tmp_path: Path
) -> None:
    """Clients that share passes end where each ends alone; the run's logits are those of the
    exported adapter and of the merged model, loaded anew."""
    own = task(kind, name, tmp_path / "base")
    fields = config.Adapter(kind="lora", rank=2, target_modules="all-linear", init="gaussian")
    made = Adapter(own.model(0), fields, seed=0)
    found = reached(own, made)
    assert APART.get(kind, "\n") in found.apart if kind in APART else not found.apart, found.apart
    assert all(MISSED.get(kind, "\n") in k for k in found.missed), found.missed

    first, scale = made.initial(), made.scaling.at(2)
    members = [stacking.Member(first, scale, rows(own, k), (0, str(k))) for k in range(2)]
    alone = []
    for member in members:
        made.load(first)
        training.train(own, made, made.parts, member.encoded, SGD, member.seed)
        alone.append(made.read(made.parts))
    if not found.apart:
        for (tensors, _), truth in zip(
            stacking.train(own, made, members, made.parts, SGD), alone, strict=True
        ):
            assert apart(tensors, truth, first) < 1e-3

    made.load(first | alone[0])
    expected = logits(made.model)
    base = own.model(0)
    assert (expected - logits(base)).abs().max() > 1e-4
    export.save_peft(made, tmp_path / "adapter", "base", own.type)
    plain = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(plain), expected, rtol=1e-3, atol=1e-4)
    export.merge(made, tmp_path / "merged", own.tokenizer, "", own.pretrained.folders)
    whole = AUTO[name].from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(logits(whole), expected, rtol=1e-3, atol=1e-4)
