"""Whole runs are compared on the same rows, and a round's cost beyond its steps is what is said."""

import json
import os
from collections import Counter
from pathlib import Path

import datasets
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from peft import get_peft_model_state_dict

from fedlora import data
from fedlora.config import Config, Data
from fedlora.runs import RunDir
from simulations.benchmarks import whole_runs
from simulations.benchmarks.flowertune import client_app
from simulations.benchmarks.flowertune.__main__ import noted
from simulations.benchmarks.flowertune.dataset import load_data
from simulations.benchmarks.flowertune.model import LABELS, MAX_LENGTH, get_model
from simulations.benchmarks.whole_runs import Round, critical


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory):
    """The rows' file."""
    folder = tmp_path_factory.mktemp("rows")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(folder / "cache"))
        whole_runs.write_rows(folder / "rows.jsonl")
        yield folder / "rows.jsonl"


def test_both_have_the_same_clients(rows: Path) -> None:
    """The partitioner gives the app the rows that fedlora gives its clients from the same file,
    and these are the bundled clients' training rows; labels and lengths are cut alike."""
    given = Data(name=str(rows), by="client", test=0, public=0, holdout=0)
    ours, bundled = data.load(given, 0), data.load(Config().data, 0)
    assert ours.labels == bundled.labels == LABELS and given.max_length == MAX_LENGTH
    assert not len(ours.test)

    def told(table: datasets.Dataset) -> Counter[tuple[str, int]]:
        return Counter(zip(table["text"], table["label"], strict=True))

    theirs = {}
    for i in range(len(ours.clients)):
        part = load_data(str(rows), i)
        (client,) = set(part["client"])
        labels = [LABELS.index(label) for label in part["label"]]
        theirs[client] = Counter(zip(part["text"], labels, strict=True))
    assert theirs == {client: told(ours.train(client)) for client in ours.clients}
    assert theirs == {client: told(bundled.train(client)) for client in bundled.clients}


def test_the_busiest_worker_is_the_critical_path() -> None:
    assert critical([("a", 1.0), ("b", 2.5), ("a", 2.0)]) == 3.0


def test_a_logged_round_lasts_from_end_to_end() -> None:
    """The first has no beginning; what is beyond steps is the round less its busiest actor."""
    log = [
        {"ended": 10.0, "clients": [{"worker": 1, "seconds": 9.0}]},
        {
            "ended": 15.0,
            "clients": [
                {"worker": 1, "seconds": 2.0},
                {"worker": 2, "seconds": 1.0},
                {"worker": 2, "seconds": 3.0},
            ],
        },
    ]
    (found,) = whole_runs._logged(log)
    assert found == Round(5.0, 4.0) and found.beyond == 1.0


def run_of(folder: Path, copies: int, workers: int) -> RunDir:
    """Rounds 0 to 2 that ended at 100, 104 and 110; four clients of 1, 1, 2 and 2 seconds."""
    simulation = {"workers": workers, "copies": copies}
    config = Config.model_validate({"run": {"name": "run"}, "simulation": simulation})
    run = RunDir.create(config, str(folder))
    lines = []
    for number, ended in enumerate((100, 104, 110)):
        checkpoint = run.round(number) / "checkpoint.json"
        checkpoint.parent.mkdir()
        checkpoint.touch()
        os.utime(checkpoint, (ended, ended))
        for client, seconds in zip("abcd", (1.0, 1.0, 2.0, 2.0), strict=True):
            row = {"kind": "client", "round": number, "client": client, "seconds": seconds}
            lines += [json.dumps(row)] * (number > 0)
    run.metrics.write_text("\n".join(lines) + "\n")
    return run


@pytest.mark.parametrize(("copies", "workers", "steps"), [(2, 2, 4.0), (4, 1, 6.0)])
def test_clients_of_a_pass_share_a_worker(
    tmp_path: Path, copies: int, workers: int, steps: float
) -> None:
    """From commit to commit, but the first round; passes of one worker are added."""
    run = run_of(tmp_path, copies, workers)
    assert list(whole_runs._rounds(run)) == [Round(6.0, steps)]


def test_unknown_workers_are_not_guessed(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="unknown order"):
        list(whole_runs._rounds(run_of(tmp_path, 1, 2)))


def test_the_app_trains_what_it_is_sent(rows: Path) -> None:
    """A message is answered with the tensors of a model made anew, moved from those it brought,
    and with the seconds of its steps."""
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    config = {"data": str(rows), "rank": 4, "steps": 2, "batch-size": 2, "lr": 1e-3}
    with torch.random.fork_rng():
        start = get_peft_model_state_dict(get_model(4), save_embedding_layers=False)
        sent = {k: t + 0.5 for k, t in start.items()}
        content = RecordDict({"arrays": ArrayRecord(sent), "config": ConfigRecord(config)})
        message = Message(content, 1, "train")
        reply = client_app.app(message, Context(1, 1, {"partition-id": 2}, RecordDict(), {}))
    arrays = reply.content.array_records["arrays"].to_torch_state_dict()
    metrics = reply.content.metric_records["metrics"]
    assert arrays.keys() == sent.keys()
    assert all(0 < float((t - sent[k]).abs().max()) < 0.01 for k, t in arrays.items())
    assert metrics["num-examples"] == len(load_data(str(rows), 2))
    assert metrics["worker"] == os.getpid() and metrics["seconds"] > 0


def test_a_round_is_noted(tmp_path: Path) -> None:
    """A line a round, of every client its process and seconds."""
    from flwr.app import MetricRecord

    replies = [
        RecordDict({"metrics": MetricRecord({"worker": w, "seconds": s, "loss": 1.0})})
        for w, s in ((7, 1.5), (8, 2.5))
    ]
    noted(tmp_path / "log", replies)
    noted(tmp_path / "log", replies)
    first, second = map(json.loads, (tmp_path / "log").read_text().splitlines())
    assert first["ended"] <= second["ended"]
    clients = [{"worker": 7, "seconds": 1.5}, {"worker": 8, "seconds": 2.5}]
    assert first["clients"] == second["clients"] == clients
