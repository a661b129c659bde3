"""The engine's report says what was measured, and holds it against what was to be reached."""

import json
from pathlib import Path

import pytest
import torch

from simulations.benchmarks import engine, throughput, whole_runs
from simulations.benchmarks.throughput import IN_TURN, LIMIT, PLAIN, POOLED, STACKED, Result
from simulations.benchmarks.timing import Spread
from simulations.benchmarks.whole_runs import FEDLORA, FLOWERTUNE, Round, Run


def result(name: str, batch: int, clients: int, speed: float) -> Result:
    """Beside a limit of 1,000 tokens a second, and of fedlora's own of 1,250."""
    spreads = (Spread(x, x, x) for x in (speed, speed / 1000, speed / 1250))
    return Result("cpu", name, batch, clients, *spreads)


def results(stacked: float) -> list[Result]:
    plain = [result(PLAIN, n, 0, 1000) for n in (8, 32, LIMIT)]
    plain += [result(PLAIN, n, 0, 10) for n in (1, 4, 16)]  # of one client's rows alone
    ours = [result(STACKED, s.batch, s.clients, stacked) for s in engine.SETTINGS]
    turns = [result(IN_TURN, s.batch, s.clients, 500) for s in engine.SETTINGS]
    return [*plain, result(POOLED, LIMIT, 1, 1250), *ours, *turns]


RAY = {
    FEDLORA: [Run(10.0, [Round(2.0, 1.9)]), Run(12.0, [Round(2.0, 1.9)])],
    FLOWERTUNE: [Run(40.0, [Round(5.0, 2.0), Round(4.0, 2.0)]), Run(48.0, [Round(5.0, 1.0)])],
}
WORKERS = {1: [Run(9.0, [Round(4.0, 3.9)])], 2: [Run(6.0, [Round(2.0, 1.9)])]}


def test_stacked_passes_are_held_against_plain_ones() -> None:
    """A pass of K·b rows is compared with the plain one of as many, and shares with both limits."""
    met = {t["what"]: (t["measured"], t["met"]) for t in engine.pass_targets(results(900))}
    assert met["8 stacked clients × 4 (cpu): time over a plain pass over 32 of the same rows"] == (
        "1.11×",
        True,
    )
    assert met["32 stacked clients × 1 (cpu): of the limit"] == ("90.0%", True)
    assert met["32 stacked clients × 1 (cpu): of fedlora's own loop's limit"] == ("72.0%", False)
    assert len(met) == 4 + 2 * 3
    assert not any(t["met"] for t in engine.pass_targets(results(840)))


def test_runs_are_held_against_each_other() -> None:
    """Medians of whole seconds, of what rounds cost beyond their steps, and of rounds."""
    found = engine.run_targets(RAY, WORKERS)
    assert [t["measured"] for t in found] == ["4.00×", "30.00×", "2.00×"]
    assert all(t["met"] for t in found)
    slow = {name: RAY[FEDLORA] for name in RAY}
    assert not any(t["met"] for t in engine.run_targets(slow, {1: WORKERS[1], 2: WORKERS[1]}))


def test_clocks_that_differ_make_no_infinite_ratio() -> None:
    """A round can seem to cost no more than its steps, which two clocks told."""
    quick = RAY | {FEDLORA: [Run(10.0, [Round(2.0, 2.001)])]}
    assert engine.run_targets(quick, WORKERS)[1]["measured"] == "3000.00×"


def test_it_reports_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The JSON has the format that all benchmarks share, and the terminal shows its rows."""
    compiled = [throughput.Compiled("cpu", 16, 60.0, 1.5, 2.0)]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(throughput, "measure", lambda *_: results(900))
    monkeypatch.setattr(throughput, "compare_compiled", lambda *_: compiled)
    monkeypatch.setattr(whole_runs, "against_ray", lambda *_: RAY)
    monkeypatch.setattr(whole_runs, "by_workers", lambda *_: WORKERS)
    engine.main(["--compile", "--json", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text("utf-8"))
    keys = {"benchmark", "title", "seconds", "tables", "targets", "notes", "raw"}
    assert found.keys() == keys and found["benchmark"] == "engine"
    told = capsys.readouterr().out
    assert len(found["tables"]) == 4 and "never" in told
    for table in found["tables"]:
        for row in table["rows"]:
            assert len(row) == len(table["columns"]) and all(isinstance(cell, str) for cell in row)
            assert row[0] in told
    assert {t["met"] for t in found["targets"]} == {True, False}
