"""A node with several devices, here two processes: where the client ends that both train,
and how the processes end.

The truth is the plain loop of one process. Batches have 1 to 5 rows, so ranks have unequal numbers
of passes, and sometimes one has none.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, RecordDict
from torch.distributed.tensor import DTensor

import strategies
from clients import app, query, ranks
from clients.asked import Fit, Fitted, Noise, Rate
from clients.owner import Owner
from clients.passes import alone
from fedlora import settings
from fedlora.privacy.accounting import Mechanism
from fedlora.resident import Node, Resident
from fedlora.stacking import Member
from fedlora.tasks import Score
from fedlora.tensors import Tensors
from fedlora.wire import Parcel
from tests.clients.nodes import Owned
from tests.federation import World, make, same
from tests.fedlora import tinyllama
from tests.hostile.server import Server

CLIENT = "books"
NOISE = Noise(Mechanism(0.5, 0.15, 1e-3), b"s" * 32)
LLAMA = {"model.name": "llama", "adapter.target_modules": ["q_proj", "down_proj"]}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "a BERT with a head": ("ddp", {"train.clip": 0.1}),
    "a Llama": ("ddp", {**LLAMA, "train.batch_size": 1}),
    "sharded": ("fsdp", {"train.clip": 0.1}),
    "a Llama sharded": (
        "fsdp",
        {**LLAMA, "model.gradient_checkpointing": True, "adapter.dora": True},
    ),
    "frozen factors sharded": ("fsdp", {"strategy.name": "fedsb", "train.micro_batch": 2}),
}

PACKED: dict[str, tuple[str, dict[str, Any]]] = {
    f"4 bits, {mode}": (mode, {**LLAMA, "model.quantize": "4bit", "model.dtype": "fp32"})
    for mode in ("ddp", "fsdp")
}
QUANTISED = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes"),
]


@pytest.fixture(scope="module")
def root(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and rows of one owner."""
    folder = tmp_path_factory.mktemp("ranks")
    made = make(folder, dropout=0.0)
    tinyllama.llama().save_pretrained(folder / "llama")
    for file in made.model.glob("token*"):
        (folder / "llama" / file.name).write_bytes(file.read_bytes())
    lines = made.data.read_text().splitlines()
    own = [line for line in lines if json.loads(line)["domain"] == CLIENT]
    (folder / "own.jsonl").write_text("\n".join(own))
    return folder


@pytest.fixture(scope="module")
def two() -> Iterator[None]:
    """Owners of this process have two devices, whatever they say."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Owner, "devices", property(lambda own: ("cpu", "cpu")))
        yield
        ranks.close()
        app.forget()


def context(root: Path, mode: str, given: dict[str, Any]) -> Context:
    model = root / given.get("model.name", "model")
    node = {
        "client": CLIENT,
        "data": str(root / "own.jsonl"),
        "model": str(model),
        "state-dir": str(root / "state"),
        "device": "cuda:0,1",
        "parallel": mode,
        "threads": 1,
    }
    small = {"strategy.name": "fedit", "train.batch_size": 5, "data.labels": ["bad", "good"]}
    tree = World(model, root / "own.jsonl").tree(root, {**small, **given, "model.name": str(model)})
    resolved, _ = settings.resolve(tree, strategies.load)
    return Context(1, 1, node, RecordDict(), settings.to_flat(resolved))


def plain(context: Context) -> Resident:
    """As on one device."""
    owner = Owner.read(context.node_config)
    config, strategy = owner.resolve(context.run_config)
    return Resident(owner.applied(config), strategy, Node(owner.data or "", CLIENT, "cpu"))


def member(own: Resident, split: str = "train") -> Member:
    return Member(own.adapter.initial(), 1.0, own.encoded(CLIENT, split), (0, "train", CLIENT, 1))


def fitted(own: Resident, noise: Noise | None = None) -> Fitted:
    parts = own.strategy.trained & own.adapter.parts
    done = alone(own, Fit(member(own), parts, noise), None)
    assert isinstance(done, Fitted)
    return done


def close(found: Tensors, truth: Tensors) -> None:
    assert found.keys() == truth.keys()
    for name, tensor in truth.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", [*CASES, *(pytest.param(k, marks=QUANTISED) for k in PACKED)])
@pytest.mark.usefixtures("two")
def test_two_devices_end_where_one_does(root: Path, case: str) -> None:
    """Every trained tensor after four steps, the loss, and the score of what is trained."""
    mode, given = {**CASES, **PACKED}[case]
    asked = context(root, mode, given)
    own, one = app.resident(asked), plain(asked)
    assert own.node.ranks.size == 2
    found, truth = fitted(own), fitted(one)
    assert any(not torch.equal(t, one.adapter.initial()[k]) for k, t in truth.tensors.items())
    close(found.tensors, truth.tensors)
    assert same(found.tensors, fitted(own).tensors)  # to the bit, though two add up
    assert found.told.loss == pytest.approx(truth.told.loss, rel=1e-5)
    assert (found.told.steps, found.told.rows) == (truth.told.steps, truth.told.rows)
    scores = []
    for resident in (own, one):
        held = member(resident, "heldout")
        trained = replace(held, tensors={**held.tensors, **truth.tensors})
        scores.append(alone(resident, Rate(trained, "heldout"), None))
    assert all(isinstance(s, Score) for s in scores)
    assert scores[0].score == scores[1].score
    assert scores[0].loss == pytest.approx(scores[1].loss, rel=1e-5)


@pytest.mark.parametrize(("mode", "engine"), [("ddp", "stacked"), ("fsdp", "hooks")])
@pytest.mark.usefixtures("two")
def test_private_training_has_one_noise(root: Path, mode: str, engine: str) -> None:
    """On the sum of all rows, whoever's they are; the statistics are of all rows too."""
    asked = context(root, mode, {**LLAMA, "privacy.epsilon": 3.0, "privacy.engine": engine})
    own, one = app.resident(asked), plain(asked)
    assert own.hides
    found, truth = fitted(own, NOISE), fitted(one, NOISE)
    close(found.tensors, truth.tensors)
    assert found.told == truth.told


@pytest.mark.usefixtures("two")
def test_gradients_of_a_sharded_base(root: Path) -> None:
    """No rank has the layers whole, and all run to have them."""
    asked = context(root, "fsdp", {"strategy.name": "fedsb", "strategy.init": "clients"})
    own, one = app.resident(asked), plain(asked)
    modules = sorted(own.adapter.shapes)[:2]
    parcel = Parcel({"modules": modules, "rows": 8, "stage": "sum"}, one.adapter.initial())
    found, truth = (query.gradients(r, CLIENT, parcel).tensors for r in (own, one))
    assert found.keys() == set(modules)
    close(found, truth)


@pytest.mark.usefixtures("two")
def test_a_base_is_in_shares(root: Path) -> None:
    """Of a block's every weight this process has half; the adapter is whole and keeps its names."""
    own = app.resident(context(root, "fsdp", LLAMA))
    held = {k: p for k, p in own.adapter.model.named_parameters() if ".layers." in k}
    assert len(held) > 20
    for name, p in held.items():
        whole = p.numel()
        part = p.to_local().numel() if isinstance(p, DTensor) else whole
        assert part == (whole if ".lora_" in name else whole // 2), name
    one = plain(context(root, "fsdp", LLAMA))
    assert own.adapter.read({"A", "B"}).keys() == one.adapter.read({"A", "B"}).keys()


@pytest.mark.usefixtures("two")
def test_a_node_answers_with_both(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Orders to train and to evaluate, over the bytes of a deployment."""
    world = World(root / "model", root / "rows.jsonl")
    told = []
    for number, device in enumerate(("cuda:0,1", "cpu")):
        with monkeypatch.context() as patch:
            if device == "cpu":
                patch.setattr(Owner, "devices", property(lambda own: ("cpu",)))
            owned = Owned(world, root / f"owned-{number}")
            server = Server(world, owned, {"device": device}, data__holdout=0.2)
            for purpose in ("train", "evaluate"):
                told.append(server.order(purpose=purpose, tag=f"x-{purpose}"))
    assert [reply.facts["status"] for reply in told] == ["ok"] * 4
    close(told[0].tensors, told[2].tensors)
    for found, truth in ((told[0], told[2]), (told[1], told[3])):
        assert found.metrics.keys() == truth.metrics.keys()
        for key in truth.metrics.keys() - {"seconds"}:
            assert found.metrics[key] == pytest.approx(truth.metrics[key], rel=1e-5)


@pytest.mark.usefixtures("two")
def test_one_that_ends_ends_the_round(root: Path) -> None:
    """With an error in place of waiting; and no other is left."""
    own = app.resident(context(root, "ddp", {}))
    _ = own.adapter
    (other,) = ranks.processes()
    other.kill()
    with pytest.raises((RuntimeError, BrokenPipeError)):
        fitted(own)
    assert other.poll() is not None and not ranks.processes()
