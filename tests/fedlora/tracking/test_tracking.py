"""Tracking: what is told of a run, and that no tracker can break one."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from fedlora import tracking
from fedlora.errors import UserError
from fedlora.tracking.series import Series
from fedlora.tracking.tracker import Facts, Tracker
from tests.fedlora.tracking import runs


class Fake(Tracker):
    """Keeps what it is given; fails at a round or at its end where it is told to."""

    fails: Any = None
    made: ClassVar[list["Fake"]] = []

    def __init__(self, facts: Facts) -> None:
        if self.fails == "start":
            raise OSError("no answer from https://me:hidden@host/api: key-123 refused\nmore")
        self.facts = facts
        self.got: dict[int, dict[str, float]] = {}
        self.done: bool | None = None
        self.made.append(self)

    def log(self, round: int, values: Mapping[str, float]) -> None:
        if round == self.fails:
            raise OSError("gone")
        self.got[round] = dict(values)

    def close(self, done: bool) -> None:
        self.done = done
        if self.fails == "end":
            raise OSError("late")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Stands for every tracker."""
    made = type("Made", (Fake,), {"made": []})
    monkeypatch.setattr(tracking, "kind", lambda name: made)
    return made


def test_series_are_the_rows_and_what_follows_from_them() -> None:
    """Sums of bytes over rounds and exp(test_loss) beside the rows' own numbers; null, text and
    what a client measures of itself have no name, and neither has a number that is none."""
    got = dict(Series().add([row for n in range(4) for row in runs.rows(n)]))
    assert got == {n: pytest.approx(runs.values(n)) for n in range(4)}
    (first, *_) = runs.rows(0)
    (_, odd) = next(Series().add([first | {"test_loss": 2000.0, "score": float("nan")}]))
    assert "round/perplexity" not in odd and "round/score" not in odd


def test_a_tracker_gets_the_rounds_that_it_lacks(tmp_path: Path, fake: Any) -> None:
    """Those of the metrics as they are when a run goes on, then those that are committed, with
    sums over all; the facts of a run are its configuration, its id and two tags."""
    run, config = runs.create(tmp_path, "mlflow")
    runs.write(run, 2)
    fake.last = 1
    assert runs.follow(run, config, 3) == []
    (tracker,) = fake.made
    assert tracker.got == {n: pytest.approx(runs.values(n)) for n in (2, 3)}
    assert tracker.done
    facts = tracker.facts
    assert (facts.id, facts.name, facts.folder) == (run.experiment, "run", run.path)
    assert facts.tags == {"method": "fedex", "model": config.model.name}
    assert facts.settings["train.steps"] == 30 and facts.settings["run.track"] == '["mlflow"]'


@pytest.mark.parametrize(("when", "said"), [(0, "gone"), (2, "gone"), ("end", "late")])
def test_a_tracker_that_fails_is_noted_once(
    tmp_path: Path, fake: Any, when: object, said: str
) -> None:
    """The run goes on without it, whether it fails at a round or at the end."""
    run, config = runs.create(tmp_path, "wandb")
    fake.fails = when
    notes = runs.follow(run, config, 0, 1, 2, 3)
    assert notes == [f"wandb fails: {said}; the run goes on without it"]


def test_a_tracker_that_does_not_start_is_the_users_to_mend(
    tmp_path: Path, fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said before anything trains, without passwords or keys; what is open already is closed."""
    monkeypatch.setenv("WANDB_API_KEY", "key-123")
    run, config = runs.create(tmp_path, "tensorboard", "wandb")
    bad = type("Bad", (fake,), {"fails": "start"})
    monkeypatch.setattr(tracking, "kind", lambda name: bad if name == "wandb" else fake)
    with pytest.raises(UserError) as caught:
        runs.follow(run, config, 0)
    assert str(caught.value) == (
        "wandb does not start: no answer from https://***@host/api: *** refused: "
        "mend that, or leave it out of run.track"
    )
    assert [t.done for t in fake.made] == [False]


def test_a_run_that_stops_is_not_done(tmp_path: Path, fake: Any) -> None:
    """Trackers are told whether the run came to its end."""
    run, config = runs.create(tmp_path, "wandb")
    with pytest.raises(KeyboardInterrupt), tracking.Tracking(run, config, print):
        raise KeyboardInterrupt
    assert [t.done for t in fake.made] == [False]


def test_a_package_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the command that installs it, before any tracker starts."""
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.delitem(sys.modules, "fedlora.tracking.wandb", raising=False)
    run, config = runs.create(tmp_path, "tensorboard", "wandb")
    with pytest.raises(UserError, match=r"pip install 'fedlora\[wandb\]'"):
        runs.follow(run, config, 0)
    assert not (run.path / "tensorboard").exists()
