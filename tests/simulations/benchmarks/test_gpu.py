"""The script for a real GPU, at a tiny size on the CPU: it cannot rot unseen."""

import json
from pathlib import Path

import pytest

from simulations.benchmarks import gpu


def test_what_is_done_twice_is_the_same(tmp_path: Path) -> None:
    """And what a pass costs is fitted. (tests/pretended has it measure every way to train.)"""
    path = tmp_path / "gpu.json"
    asked = ["--device", "cpu", "--shape", "tiny", "--repeats", "1", "--json", str(path)]
    assert gpu.main([*asked, "--parts", "fixed", "same"]) == 0
    fixed, same = json.loads(path.read_text())["tables"]
    assert "in tokens" in fixed["rows"][-2][0]
    assert [told for what, told in same["rows"] if "against" not in what] == ["the same bits"] * 2


def test_a_part_that_fails_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is named with its reason, the others are measured, and the exit code says so."""

    def broken() -> gpu.TableData:
        raise RuntimeError("no such kernel")

    def fine() -> gpu.TableData:
        return {"title": "Fine", "columns": ["what"], "rows": [["this"]]}

    monkeypatch.setattr(gpu, "parts", lambda given: [("broken", broken), ("fine", fine)])
    path = tmp_path / "gpu.json"
    assert gpu.main(["--device", "cpu", "--shape", "tiny", "--json", str(path)]) == 1
    report = json.loads(path.read_text())
    assert report["missing"] == {"broken": "RuntimeError: no such kernel"}
    assert [table["title"] for table in report["tables"]] == ["Fine"]
    assert "no such kernel" in capsys.readouterr().err


def test_there_is_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that could only begin when the time is over is left out, and said to be."""
    monkeypatch.setattr(gpu, "parts", lambda given: [("late", dict)])
    path = tmp_path / "gpu.json"
    asked = ["--device", "cpu", "--shape", "tiny", "--seconds", "-1", "--json", str(path)]
    assert gpu.main(asked) == 1
    assert "left out" in json.loads(path.read_text())["missing"]["late"]


def test_it_says_where_there_is_no_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        gpu.main(["--device", "cuda:99"] if not gpu.torch.cuda.is_available() else ["--shape", "x"])
    assert end.value.code == 2
