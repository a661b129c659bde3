"""Weights & Biases for real, offline: what its own files hold. Skipped without its package, which
`make test-track` installs."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedlora import settings
from fedlora.errors import UserError
from tests.fedlora.tracking import runs

pytest.importorskip("wandb", exc_type=ImportError)

import wandb
from wandb.proto.wandb_internal_pb2 import Record

BLOCK, HEADER = 32768, 7  # of LevelDB's log format, in which W&B keeps records


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wandb.teardown()  # it reads the environment once in a process
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    for name in ("WANDB_PROJECT", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


def records(path: Path) -> Iterator[Record]:
    """The records of a `.wandb` file."""
    data, at, whole = path.read_bytes(), HEADER, b""
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:  # no room for a header: the block's rest is padding
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        whole += data[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (1, 4):  # full, or the last of several
            yield Record.FromString(whole)
            whole = b""


def offline_runs(folder: Path) -> list[list[Record]]:
    """The records of each time that the run was tracked, oldest first."""
    wandb.teardown()  # its own process, which writes the files, has ended after this
    return [list(records(path)) for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))]


def history(found: list[Record]) -> dict[int, dict[str, float]]:
    """The numbers by step, without W&B's own."""
    steps: dict[int, dict[str, float]] = {}
    for record in found:
        items = {
            "/".join(item.nested_key) or item.key: json.loads(item.value_json)
            for item in record.history.item
        }
        if record.HasField("history"):
            assert items["_step"] not in steps
            steps[items["_step"]] = {k: v for k, v in items.items() if k[0] != "_"}
    return steps


def told(found: list[Record]) -> Any:
    (run, *_) = [record.run for record in found if record.HasField("run")]
    return run


def test_wandb_keeps_what_was_committed(tmp_path: Path) -> None:
    """Every number at its round, the whole configuration, the names; and nothing else: no output,
    no code, nothing about the machine."""
    run, config = runs.create(tmp_path, "wandb")
    assert runs.follow(run, config, 0, 1, 2) == []
    (found,) = offline_runs(run.path)
    assert history(found) == {n: pytest.approx(runs.values(n)) for n in range(3)}
    start = told(found)
    assert (start.run_id, start.display_name, start.project) == (run.experiment, "run", "fedlora")
    assert set(start.tags) == {"method:fedex", f"model:{config.model.name}"}
    given = {item.key: json.loads(item.value_json) for item in start.config.update}
    given.pop("_wandb", None)
    assert given == settings.to_flat(config)
    kinds = {record.WhichOneof("record_type") for record in found}
    assert not kinds & {"output", "output_raw", "stats", "artifact", "environment"}
    files = [f.path for r in found if r.HasField("files") for f in r.files.files]
    assert not {"requirements.txt", "wandb-metadata.json", "output.log"} & set(files)


def test_wandb_goes_on_with_a_resumed_run(tmp_path: Path) -> None:
    """Under the same id, with the rounds that it lacks alone: one that was committed and not told,
    because the process ended between, and those to come."""
    run, config = runs.create(tmp_path, "wandb")
    runs.follow(run, config, 0, 1)
    runs.write(run, 2)
    runs.follow(run, config, 3)
    first, second = offline_runs(run.path)
    assert told(first).run_id == told(second).run_id
    assert list(history(first)) == [0, 1]
    assert history(second) == {n: pytest.approx(runs.values(n)) for n in (2, 3)}


def test_wandb_without_a_key_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing trains for a project that nobody is let in to."""
    wandb.teardown()
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    run, config = runs.create(tmp_path, "wandb")
    with pytest.raises(UserError, match=r"wandb does not start: .*API key"):
        runs.follow(run, config)
