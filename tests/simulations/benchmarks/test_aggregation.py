"""The benchmark of aggregation: its contenders average the same updates, and all is told."""

import json
from pathlib import Path

import pytest
import torch

from simulations.benchmarks import aggregation, updates
from simulations.benchmarks.aggregation import Peak, Rate
from simulations.benchmarks.timing import Spread

SIZES = {"layer.A": (2, 5), "layer.B": (3, 2)}


def test_shapes_are_those_of_the_model() -> None:
    """The published number of parameters, at r = 32."""
    assert sum(m * n for m, n in updates.shapes(32).values()) == 48_627_712


def test_everybody_averages_the_same(tmp_path: Path) -> None:
    """Against float64, with uneven weights; a list twice as long has the weights of that list."""
    load, drawn = updates.load(SIZES, 4, tmp_path), [updates.draw(SIZES, i) for i in range(4)]

    def truth(count: int, name: str) -> torch.Tensor:
        parts = [(i + 1) * drawn[i % 4][name].double() for i in range(count)]
        return sum(parts) / sum(range(1, count + 1))

    flower, plain = updates.flower(load), updates.plain_numpy(load)
    for name in SIZES:
        for found, count in [
            (updates.fedlora(load)[name], 4),
            (updates.fedlora(load, 2)[name], 8),
            (torch.from_numpy(plain[name]), 4),
            (torch.from_numpy(flower[name].numpy()), 4),
        ]:
            torch.testing.assert_close(found.double(), truth(count, name), rtol=1e-6, atol=1e-6)


def test_the_yardstick_adds_every_update() -> None:
    """Each once."""
    sums = {k: torch.zeros(s) for k, s in SIZES.items()}
    drawn = [updates.draw(SIZES, i) for i in range(3)]
    updates.add(drawn, sums)
    for name in SIZES:
        torch.testing.assert_close(sums[name], sum(d[name] for d in drawn))


def test_files_hold_the_same_updates(tmp_path: Path) -> None:
    """What memory's trials read is what was drawn, and none is out of order for long."""
    updates.write(tmp_path / "x", SIZES, 2)
    found = updates.wire.unpack(updates._read(tmp_path / "x", SIZES, 1)).tensors
    assert all(torch.equal(found[k], t) for k, t in updates.draw(SIZES, 1).items())
    assert updates.swapped(6) == [1, 0, 3, 2, 5, 4]


def test_it_says_everything_it_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every contender and every trial of memory is in the table and in JSON, beside the targets."""
    monkeypatch.setattr(updates, "shapes", lambda rank: SIZES)
    monkeypatch.setattr(updates, "peak", lambda name, sizes, order, folder: 0.5 * len(order))
    path = tmp_path / "found.json"
    aggregation.main(["--quick", "--json", str(path)])
    found, told = json.loads(path.read_text()), capsys.readouterr().out
    speed, held = found["tables"]
    ours = [aggregation.FEDLORA, aggregation.MANY, aggregation.SCREENED]
    who = [*ours, aggregation.NUMPY, aggregation.FLOWER, aggregation.ADD]
    assert [row[1] for row in speed["rows"]][:6] == who
    assert all(
        len(row) == len(table["columns"]) for table in (speed, held) for row in table["rows"]
    )
    assert [row[1:] for row in held["rows"]] == [
        ["4", "in turn", "2.00"],
        ["20", "in turn", "10.00"],
        ["4", "pairs swapped", "2.00"],
        ["4", "in turn", "2.00"],
    ]
    assert "to reach" in told and found["benchmark"] == "aggregation"
    assert found["targets"][-1]["measured"] == "10.00" and not found["targets"][-1]["met"]


def test_targets_are_held_against_medians() -> None:
    """Fedlora's own, by threads; memory is the worst of all trials of ours."""
    rates = [
        Rate(n, who, 20, Spread(1, 1, 1), 1.0, Spread(0, f, 99), Spread(0, a, 9))
        for n, who, f, a in [
            (1, aggregation.FEDLORA, 4.0, 0.49),
            (1, aggregation.NUMPY, 1.0, 0.9),
            (1, aggregation.SCREENED, 3.0, 0.6),
            (2, aggregation.FEDLORA, 7.9, 0.5),
        ]
    ]
    peaks = [Peak(aggregation.FEDLORA, 20, "x", 2.0), Peak(aggregation.FLOWER, 20, "x", 22.0)]
    found = aggregation.targets(rates, peaks)
    assert [t["met"] for t in found] == [True, False, False, True, False, True, True]
    assert [t["measured"] for t in found] == ["4.0×", "49%", "3.0×", "60%", "7.9×", "50%", "2.00"]
