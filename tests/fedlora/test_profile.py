"""The profile of a run: every second is somewhere, once; nothing is measured that was not asked."""

import json
import threading
import time
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from fedlora import profile, report
from fedlora.profile import Profile, Recorder, recording, span, timed
from simulations.pool import Pool
from tests.federation import World, federate, same


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that a test sets."""
    clock = [100.0]
    monkeypatch.setattr(profile, "perf_counter", lambda: clock[0])
    return clock


def test_a_span_takes_its_time_from_the_one_around_it(now: list[float]) -> None:
    """Nothing counts twice, an exception ends a span, and all adds up to what passed."""
    recorder = Recorder()

    @timed("optimizer")
    def step() -> None:
        now[0] += 4

    with recording(recorder):
        now[0] += 1
        with span("evaluate"):
            now[0] += 2
            with pytest.raises(ValueError), span("load"):
                now[0] += 8
                raise ValueError
            step()
            now[0] += 16
    assert recorder.taken() == {"other": 1, "evaluate": 18, "load": 8, "optimizer": 4}
    now[0] += 1
    assert recorder.taken() == {"other": 1}


def test_without_a_recorder_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor in another thread than the one that records: its time is somebody's wait."""
    monkeypatch.setattr(profile, "perf_counter", lambda: pytest.fail("the time was asked for"))
    with span("load"):
        profile.mark(1)
    monkeypatch.undo()
    recorder = Recorder()
    with recording(recorder):
        found: list[object] = []
        thread = threading.Thread(target=lambda: found.append(profile.current()))
        thread.start()
        thread.join()
    assert found == [None] and profile.current() is None


def test_rounds_and_workers_add_up(now: list[float], tmp_path: Path) -> None:
    """Each process to the run's wall time, and the table has their shares of it."""
    found = Profile()
    with recording(found):
        now[0] += 3
        profile.mark(0)
        with span("aggregate"):
            now[0] += 5
        profile.mark(1)
        now[0] += 2
    found.add("worker-0", "1", {"load": 2.0, "store": 1.0})
    found.add("worker-0", "1", {"load": 1.0})
    found.end()
    assert found.rounds == {
        "server": {"0": {"other": 3}, "1": {"other": 0, "aggregate": 5}, "end": {"other": 2}},
        "worker-0": {"1": {"load": 3, "store": 1}, "end": {"wait": 6}},
    }
    found.write(tmp_path / "profile.json")
    told = json.loads((tmp_path / "profile.json").read_text())
    assert told == {"seconds": 10, "processes": found.rounds}
    shown = _shown(found)
    assert shown["aggregate"] == ["5.00", "50%", "0.00", "0%"]
    assert shown["wait"] == ["0.00", "0%", "6.00", "60%"]
    assert shown["seconds"] == ["10.00", "100%", "10.00", "100%"]


def test_many_workers_are_one_column(now: list[float]) -> None:
    """Their mean: a wide machine does not make a table that nobody can read."""
    found = Profile()
    now[0] += 4
    for i in range(5):
        found.add(f"worker-{i}", "1", {"store": float(i)})
    found.end()
    assert _shown(found)["store"] == ["0.00", "0%", "2.00", "50%"]


def _shown(found: Profile) -> dict[str, list[str]]:
    text = StringIO()
    report.show(profile.table(found), Console(file=text, width=200))
    lines = [line.split() for line in text.getvalue().splitlines()]
    return {line[0]: line[1:] for line in lines if len(line) > 3}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_federation_is_profiled(world: World, tmp_path: Path, workers: int) -> None:
    """Every round has every kind of work, of the process that does it; no bit is otherwise, and
    what workers say of themselves is never more than what passed."""
    plain = federate(world, tmp_path / "plain", "fedex", run__rounds=2)
    found, before = Profile(), time.perf_counter()
    with recording(found), Pool(workers, 1) as pool:
        ran = federate(world, tmp_path / "profiled", "fedex", run__rounds=2, pool=pool)
    found.end()
    passed = time.perf_counter() - before
    assert same(ran.state(2), plain.state(2))
    clients = {"forward and backward", "optimizer", "store", "evaluate", "encode"}
    server = {"aggregate", "checkpoint", "encode", "wait", "other"}
    names = [f"worker-{i}" for i in range(workers)]
    assert set(found.rounds) == {"server", *names}
    for number in ("1", "2"):
        done = [set(found.rounds[name].get(number, {})) for name in names]
        assert set(found.rounds["server"][number]) >= (server if workers else server | clients)
        assert not workers or set.union(*done) >= clients
    assert {"load", "tokenise"} <= set(found.totals(names[0] if workers else "server"))
    for name in found.rounds:
        total = sum(found.totals(name).values())
        assert all(s >= 0 for s in found.totals(name).values()) and total <= passed + 1e-6
