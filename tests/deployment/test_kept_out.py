"""Who is no party to a deployment, or has something else than the others, is kept out."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.deployment.net import Net, Node, authority
from tests.deployment.processes import wait_for

pytestmark = pytest.mark.deployment


def test_a_node_that_nobody_knows_never_gets_online(net: Net, tmp_path: Path) -> None:
    """Not with another authority's certificate, an unregistered key, or no key; its log says so."""
    another = authority(tmp_path) / "public/ca.crt"
    registered = net.node("stranger-ca", {"client": "books"}, certificate=another)
    net.register("stranger-ca")
    unknown = net.node("stranger-key", {"client": "books"})
    keyless = Node(net, "stranger-none", {"client": "books"})
    words = {
        registered: "CERTIFICATE_VERIFY_FAILED",
        unknown: "Failed to activate SuperNode",
        keyless: "SuperNodes must be registered",
    }
    for node in words:
        node.start()
    try:
        for node, text in words.items():
            wait_for(f"{node.client} is turned away", lambda n=node, t=text: n.said(t), 60)
        assert net.superlink.said("No SuperNode found with the given public key")
        assert net.online() == 3
    finally:
        for node in words:
            node.kill()


def test_a_node_with_another_model_tokenizer_or_labels_is_refused_before_round_1(
    net: Net, tmp_path: Path
) -> None:
    """It is told what differs, the others' run goes on without it."""
    odd = {
        "base": ({"model": str(other_base(net, tmp_path / "base"))}, "other weights of the base"),
        "words": ({"model": str(other_words(net, tmp_path / "words"))}, "another tokenizer"),
        "labels": ({"data": str(other_labels(net, tmp_path))}, "labels ['good', 'poor']"),
    }
    nodes = {}
    for name, (config, _) in odd.items():
        nodes[name] = net.node(name, {"data": str(net.rows / "books.jsonl"), **config})
        net.register(name)
        nodes[name].start()
    try:
        wait_for("all nodes are online", lambda: net.online() == 6, 90)
        role = net.submit("agreement", run__rounds=1)
        assert role.finished(400) == 0, role.tail()
        assert net.metrics(net.runs / "agreement")[1]["clients"] == 3
        for name, (_, text) in odd.items():
            wait_for(f"{name} is told", lambda n=name, t=text: nodes[n].said(t), 5)
            lines = [x for x in net.logged("agreement").splitlines() if f"client {name} " in x]
            assert len(lines) == 1 and text in lines[0]
    finally:
        for node in nodes.values():
            node.kill()


def other_base(net: Net, folder: Path) -> Path:
    """The model with one weight changed by a little."""
    shutil.copytree(net.world.model, folder)
    weights = load_file(folder / "model.safetensors")
    name = next(n for n in sorted(weights) if n.endswith("query.weight"))
    weights[name][0, 0] += torch.tensor(1e-4)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def other_words(net: Net, folder: Path) -> Path:
    """The model with two words of its tokenizer exchanged."""
    shutil.copytree(net.world.model, folder)
    file = folder / "tokenizer.json"
    found = json.loads(file.read_text())
    words = found["model"]["vocab"]
    words["filler0"], words["filler1"] = words["filler1"], words["filler0"]
    file.write_text(json.dumps(found))
    return folder


def other_labels(net: Net, folder: Path) -> Path:
    """Rows with another name for a label."""
    file = folder / "rows.jsonl"
    file.write_text((net.rows / "books.jsonl").read_text().replace('"bad"', '"poor"'))
    return file
