"""The benchmark of large models: whole rounds of every method, at a tiny size."""

import json
from pathlib import Path

import pytest

from simulations.benchmarks import large
from simulations.benchmarks.large import METHODS, Case, Measured
from simulations.benchmarks.memory import STATUS
from simulations.benchmarks.standins import MODELS, Model

pytestmark = pytest.mark.skipif(not STATUS.exists(), reason="the system tells no peak of memory")
FACTORS = 2 * 16 * (2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 96))  # numbers of the tiny model
HALF = {"ffa": "B", "fedsa": "A"}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No memory is measured, for which the process would be swept between rounds."""
    monkeypatch.setattr(large, "_settled", lambda: 0.0)


def served(method: str, wire: str) -> Measured:
    return large._served(Case("tiny", 3, method, wire), 2)


@pytest.mark.parametrize("method", METHODS)
def test_what_crosses_is_what_the_method_sends(method: str) -> None:
    """By its own description, at both formats; FedEx's residual of three clients has 2r columns
    (without a cap small layers have a dense one soon)."""
    fp32, bf16 = served(method, "fp32"), served(method, "bf16")
    if method not in ("fedsb", "fslora"):
        assert fp32.update == pytest.approx(4 * FACTORS / (2 if method in HALF else 1), rel=0.2)
        assert fp32.up == fp32.update
    if method == "fedsb":
        assert fp32.up == 4 * 2 * 7 * 16 * 16
    if method == "fslora":
        assert fp32.up == pytest.approx(fp32.update * (16 + 8 + 4) / 3 / 16)
    assert bf16.up == fp32.up / 2
    if method == "fedex, capped":
        assert fp32.state == fp32.update * (1 + 2 * 2)  # of two rounds, 32 columns each
        assert fp32.down == fp32.update * 3
    elif method != "fedex":
        assert fp32.down == fp32.up


def test_shapes_are_those_of_the_models() -> None:
    """Parameters of the adapters of all seven linears, r = 16, as published tools count them."""
    for name, count in {"Llama-3.2-1B": 11_272_192, "Llama-3-8B": 41_943_040}.items():
        assert 16 * sum(m + n for m, n in MODELS[name].shapes().values()) == count
    assert len(Model(2, 8, 16, 4).shapes()) == 14


def test_targets_are_about_updates_that_show() -> None:
    """The worst method of those whose updates are more than what else takes memory."""
    big = Measured(100e6, 1e8, 1e9, 250e6, {}, 1.0, 1.0, 1.0, 1.0)
    tiny = Measured(1e6, 1e8, 1e9, 30e6, {}, 1.0, 1.0, 1.0, 1.0)
    found = {Case("m", 10, "fedit", "fp32"): big, Case("m", 10, "fedsb", "fp32"): tiny}
    (told,) = large.targets(found)
    assert told["measured"] == "2.50" and told["met"]
    worse = Measured(100e6, 1e8, 1e9, 301e6, {}, 1.0, 1.0, 1.0, 1.0)
    (told,) = large.targets({**found, Case("m", 10, "ffa", "fp32"): worse})
    assert told["measured"] == "3.01" and not told["met"]


def test_every_measured_case_is_in_the_table_and_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With columns for each number, in this process."""
    monkeypatch.setattr(large, "apart", lambda cases: {c: large._served(c, 2) for c in cases[:2]})
    large.main(["--quick", "--json", str(tmp_path / "x.json")])
    told = json.loads((tmp_path / "x.json").read_text())
    (table,) = told["tables"]
    assert len(table["rows"]) == len(told["raw"]) == 2
    assert all(len(row) == len(table["columns"]) for row in table["rows"])
    assert "fedit" in capsys.readouterr().out


def test_which_cases_there_are() -> None:
    """All methods at both formats; FedEx without a cap not at 50 clients, whose state would grow by
    49 updates a round."""
    default, everything = large.cases(False, False), large.cases(False, True)
    assert {c.method for c in default} == set(METHODS) and {c.wire for c in default} == {
        "fp32",
        "bf16",
    }
    assert {c.model for c in default} == {"Llama-3.2-1B", "Llama-3-8B"}
    assert Case("Llama-3-8B", 50, "fedex, capped", "fp32") in everything
    assert not [c for c in everything if c.method == "fedex" and c.clients == 50]
