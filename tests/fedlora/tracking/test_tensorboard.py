"""TensorBoard's files, read by TensorBoard itself."""

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from tests.federation import Crash, World, crash_at, federate
from tests.fedlora.tracking import runs

Points = dict[str, list[tuple[int, float]]]


def accumulated(run: Path) -> EventAccumulator:
    return EventAccumulator(str(run / "tensorboard")).Reload()


def read(run: Path) -> Points:
    """Steps and values by tag."""
    events = accumulated(run)
    tags = events.Tags()["scalars"]
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags}


def expected(*numbers: int) -> Points:
    found: Points = {}
    for number in numbers:
        for tag, value in runs.values(number).items():
            found.setdefault(tag, []).append((number, pytest.approx(value)))
    return found


def test_tensorboard_reads_what_was_committed(tmp_path: Path) -> None:
    """Every number at its round, and the configuration as hyper-parameters."""
    run, config = runs.create(tmp_path, "tensorboard")
    assert runs.follow(run, config, 0, 1, 2) == []
    assert read(run.path) == expected(0, 1, 2)
    contents = accumulated(run.path).PluginTagToContent("hparams")
    start = HParamsPluginData.FromString(contents["_hparams_/session_start_info"])
    told = start.session_start_info.hparams
    assert told["strategy.name"].string_value == told["method"].string_value == "fedex"
    assert told["train.steps"].number_value == 30
    assert "_hparams_/session_end_info" in contents


def test_a_round_that_was_undone_leaves_no_step(tmp_path: Path) -> None:
    """Of a run whose rounds 2 and 3 were lost, resumed at round 1, every step is there once."""
    run, config = runs.create(tmp_path, "tensorboard")
    runs.follow(run, config, 0, 1, 2, 3)
    runs.write(run, 1)
    (run.path / "tensorboard/events.out.tfevents.1.before").touch()
    runs.follow(run, config, 2)
    assert read(run.path) == expected(0, 1, 2)
    assert len(list((run.path / "tensorboard").iterdir())) == 1


def test_a_resumed_federation_is_tracked_as_its_metrics_are(world: World, tmp_path: Path) -> None:
    """By default, and after a crash in the middle of a round too."""
    given = {"run__rounds": 2, "train__steps": 1}
    with pytest.raises(Crash):
        federate(world, tmp_path, "ffa", watch=crash_at(2, "aggregate"), **given)
    ran = federate(world, tmp_path, "ffa", resume=True, **given)
    found = read(ran.run.path)
    scored = [row for row in ran.rows() if row["score"] is not None]
    assert found["round/score"] == [(r["round"], pytest.approx(r["score"])) for r in scored]
    assert len(scored) == 2
    mine = [r for r in ran.rows("client") if r["client"] == "books"]
    assert found["loss/books"] == [(r["round"], pytest.approx(r["loss"])) for r in mine]
    assert len(mine) == 2
