"""A disk that is full, and messages that are large."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import BertConfig, BertModel

from fedlora.streams import forked
from fedlora.tensors import nbytes
from fedlora.views import fingerprint, manifest
from tests.deployment.net import Net
from tests.deployment.processes import end, marked
from tests.federation import same

pytestmark = pytest.mark.deployment


@pytest.fixture
def small_disk(net: Net) -> Iterator[Path]:
    """The state directory of one node, on a disk of half a megabyte."""
    if os.geteuid():
        pytest.skip("only root can mount a small disk")
    state = net.nodes["films"].state
    node = net.nodes["films"]
    node.kill()
    state.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k,mode=0700", "none", str(state)]
    done = subprocess.run(mount, capture_output=True, text=True, timeout=10)
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    try:
        node.revive()
        yield state
    finally:
        node.kill()
        subprocess.run(["umount", "-l", str(state)], check=True, timeout=10)


def test_a_client_whose_disk_is_full_is_missing(net: Net, small_disk: Path) -> None:
    """The run ends without it, and nothing half-written stays on its disk."""
    held = net.nodes["films"].held(2)
    role = net.submit("disk", "held:HeldFedSA", run__rounds=2)
    net.nodes["films"].reached(2)
    with (small_disk / "filler").open("wb", buffering=0) as file:
        while True:
            try:
                file.write(bytes(1024))
            except OSError:
                break
    held.unlink()
    assert role.finished(400) == 0, role.tail()
    rows = net.metrics(net.runs / "disk")
    assert [r["clients"] for r in rows[1:]] == [3, 2]
    assert "its own log says more" in rows[2]["failed"]["films"]
    kept = [p for p in small_disk.glob("run-*/client-*/*") if p.is_file()]
    assert kept
    for path in kept:
        load_file(path)  # every file that is there is whole


def wide(net: Net, folder: Path) -> Path:
    """The model with matrices of 4096 by 4096, so that an adapter of full rank is large."""
    shutil.copytree(net.world.model, folder)
    config = BertConfig.from_pretrained(folder, hidden_size=4096, num_hidden_layers=1)
    with forked(0, "tests"):
        BertModel(config).save_pretrained(folder)
    return folder


def test_a_large_message_arrives_whole_both_ways(net: Net, tmp_path: Path) -> None:
    """More than 400 MB to a client and back, by digests taken where they were sent."""
    model = str(wide(net, tmp_path / "wide"))
    node = net.node("wide", {"data": str(net.rows / "books.jsonl"), "model": model})
    net.register("wide")
    node.start()
    role = net.submit(
        "large",
        "held:Digested",
        model__name=model,
        adapter__rank=4096,
        adapter__target_modules=["query", "key", "value", "attention.output.dense"],
        train__steps=1,
        train__batch_size=1,
        train__optimizer="sgd",
        run__rounds=1,
        run__min_clients=1,
        run__keep="updates",
        run__deadline=600.0,
    )
    try:
        net.wait_round("large", 1, 500)
        folder = net.runs / "large/round-0001"
        sent, update = (load_file(folder / f"{w}-wide.safetensors") for w in ("sent", "update"))
        assert nbytes(sent) > 400e6 and nbytes(update) > 400e6
        place = node.state / f"run-{net.experiment('large')}/client-wide"
        assert same(load_file(place / "view-0001-0.safetensors"), sent)
        assert fingerprint(manifest(update)) == (node.hold / "uploaded").read_text()
    finally:  # the way back of a gigabyte of files is another test's
        role.kill()
        end(marked(net.superexec.mark, "flwr-serverapp"))
        node.kill()
