"""`fedlora evaluate` on classification runs; a language model's are in tests/test_llm_path.py."""

from pathlib import Path

import pytest

from fedlora.errors import UserError
from simulations import scoring
from tests.federation import World, federate


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
