"""The server's model is scored beside the next round; a round is told of once it is whole."""

import json
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from server import loop, score
from server.score import Rate, Rated, Wanted
from tests.federation import Crash, Ran, Watch, World, federate, same

WAIT = 60.0  # seconds after which a test that hangs fails


def timeless(ran: Ran) -> list[dict[str, Any]]:
    return [{k: v for k, v in r.items() if k != "seconds"} for r in ran.rows()]


def rated(monkeypatch: pytest.MonkeyPatch, before: Any) -> None:
    """Has `before(number)` called ahead of each round's scoring."""

    def here(resident: Any) -> Rate:
        own = score.here(resident)

        def rate(number: int, wants: Wanted) -> Rated:
            before(number)
            return own(number, wants)

        return rate

    monkeypatch.setattr(loop, "here", here)


def test_a_round_begins_before_the_last_ones_score_is_there(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Round 1 is scored only once round 2 trains; what is found is as ever, and told in order."""
    plain = federate(world, tmp_path / "plain", run__rounds=2)
    training = Event()
    told: list[tuple[int, str]] = []

    def at(round: int, phase: str) -> None:
        told.append((round, phase))
        if (round, phase) == (2, "train"):
            training.set()

    rated(monkeypatch, lambda number: training.wait(WAIT) or pytest.fail("round 2 never began"))
    beside = federate(world, tmp_path / "beside", watch=Watch(at), run__rounds=2)
    assert timeless(beside) == timeless(plain) and plain.row(1)["score"] is not None
    assert [n for n, phase in told if phase == "committed"] == [0, 1, 2]
    assert told.index((1, "committed")) > told.index((2, "train"))


def test_a_server_that_ends_before_a_score_makes_it_when_it_goes_on(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of the round is in metrics.jsonl before; then all is as if it had never ended."""
    plain = federate(world, tmp_path / "plain", run__rounds=3)

    def crash(number: int) -> None:
        if number == 2:
            raise Crash

    with monkeypatch.context() as patch, pytest.raises(Crash):
        rated(patch, crash)
        federate(world, tmp_path / "cut", run__rounds=3)
    lines = (tmp_path / "cut/run/metrics.jsonl").read_text().splitlines()
    assert {json.loads(line)["round"] for line in lines} == {0, 1}
    again = federate(world, tmp_path / "cut", run__rounds=3, resume=True)
    assert timeless(again) == timeless(plain)
    assert same(again.state(3), plain.state(3))


def test_the_start_is_scored_on_request(world: World, tmp_path: Path) -> None:
    plain, asked = (
        federate(world, tmp_path / str(baseline), run__rounds=1, run__baseline=baseline)
        for baseline in (False, True)
    )
    assert plain.row(0)["score"] is None and plain.row(0)["test_loss"] is None
    assert asked.row(0)["score"] is not None and asked.row(0)["test_loss"] is not None
    assert timeless(asked)[1:] == timeless(plain)[1:]
