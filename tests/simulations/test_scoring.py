"""`fedlora evaluate` on classification runs; a language model's are in tests/test_llm_path.py."""

from pathlib import Path

import pytest

from fedlora.errors import UserError
from fedlora.resident import Resident
from fedlora.tasks import Score
from simulations import scoring
from tests.federation import World, federate


def test_passes_have_what_memory_has_room_for(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted before a model is loaded, which would not outlast it."""
    ran = federate(world, tmp_path, **{"run.rounds": 1, "data.test": 0.2})
    done: list[object] = []

    def evaluate(task: object, model: object, rows: object, most: object) -> Score:
        done.append(most)
        return Score(1.0, 0.0, 1)

    monkeypatch.setattr(Resident, "bound", lambda self, rows: done.append("counted") or 24)
    monkeypatch.setattr(Resident, "load", lambda *_: done.append("loaded"))
    monkeypatch.setattr(scoring.evaluation, "evaluate", evaluate)
    scoring.evaluate(str(ran.run.path), {}, None, None)
    assert done == ["counted", "loaded", 24]


def test_a_classifier_is_scored_as_in_its_run(world: World, tmp_path: Path) -> None:
    """Score and loss are those of the last round's row, in fractions and nats, and nothing of
    language models is said; other settings than of data and generate are the run's."""
    ran = federate(world, tmp_path, **{"run.rounds": 1, "data.test": 0.2})
    path, last = str(ran.run.path), ran.row(1)
    found = scoring.evaluate(path, {}, None, None)
    assert found.keys() == {"model", "round", "rows", "score", "loss"}
    assert found["score"] == pytest.approx(last["score"])
    assert found["loss"] == pytest.approx(last["test_loss"], rel=1e-5)
    with pytest.raises(UserError, match="only settings of data and generate"):
        scoring.evaluate(path, {"train": {"lr": 1}}, None, None)
