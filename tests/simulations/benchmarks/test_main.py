"""One command runs all benchmarks and says what was measured, reached, missed and failed."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from simulations.benchmarks import __main__ as every
from simulations.benchmarks import machine

REPORT = {
    "benchmark": "x",
    "title": "A title",
    "seconds": 61.2,
    "tables": [{"title": "A table", "columns": ["way", "ms"], "rows": [["a|b", "1.5"]]}],
    "targets": [
        {"what": "speed", "target": "≥ 4×", "measured": "5.1×", "met": True},
        {"what": "memory", "target": "≤ 3", "measured": "3.5", "met": False},
    ],
    "notes": ["A note."],
}


def played(monkeypatch: pytest.MonkeyPatch, replies: dict[str, Any]) -> list[list[str]]:
    """Benchmarks that write the report, or end with the code, that is theirs."""
    commands = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        reply = replies.get(command[2].rpartition(".")[2], REPORT)
        if isinstance(reply, Exception):
            raise reply
        if isinstance(reply, dict):
            Path(command[command.index("--json") + 1]).write_text(json.dumps(reply))
        return subprocess.CompletedProcess(command, reply if isinstance(reply, int) else 0)

    monkeypatch.setattr(subprocess, "run", run)
    return commands


def test_everything_is_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each benchmark once; targets with what was measured, tables, notes, machine and versions."""
    commands = played(monkeypatch, {})
    assert every.main([], tmp_path / "R.md") == 0
    assert [c[2].rpartition(".")[2] for c in commands] == every.BENCHMARKS
    text = (tmp_path / "R.md").read_text("utf-8")
    assert "| exact | speed | ≥ 4× | 5.1× | yes |" in text
    assert "| exact | memory | ≤ 3 | 3.5 | **missed** |" in text
    assert text.count("| a∣b | 1.5 |") == text.count("- A note.") == len(every.BENCHMARKS)
    for told in (*machine.machine().values(), *machine.versions().values()):
        assert told in text
    for path in (Path.cwd(), Path.home(), tmp_path):
        assert str(path) not in text
    assert "Failed" not in text


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (3, "exit code 3"),
        (0, "no report"),
        (subprocess.TimeoutExpired("x", 1.0), "more than 1200 seconds"),
    ],
)
def test_a_failure_is_named_and_the_others_go_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    reply: object,
    reason: str,
) -> None:
    """The exit code is 1, the file names it, and has what the others measured."""
    commands = played(monkeypatch, {"scale": reply})
    assert every.main([], tmp_path / "R.md") == 1
    assert len(commands) == len(every.BENCHMARKS)
    text = (tmp_path / "R.md").read_text("utf-8")
    (line,) = (line for line in text.splitlines() if line.startswith("- `scale`"))
    assert reason in line and reason in capsys.readouterr().err
    assert text.count("A title") == len(every.BENCHMARKS) - 1


def test_a_quick_check_overwrites_no_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every benchmark is told, and the file stays."""
    commands = played(monkeypatch, {})
    assert every.main(["--quick"], tmp_path / "R.md") == 0
    assert all(c[-1] == "--quick" for c in commands)
    assert not (tmp_path / "R.md").exists()


def test_one_is_measured_again_beside_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others' reports are read and not run; one that fails now is not told from an old file."""
    commands, again = played(monkeypatch, {}), ["exact", "--reports", str(tmp_path / "kept")]
    every.main(["--reports", str(tmp_path / "kept")], tmp_path / "R.md")
    del commands[:]
    assert every.main(again, tmp_path / "R.md") == 0
    assert [c[2] for c in commands] == ["simulations.benchmarks.exact"]
    assert (tmp_path / "R.md").read_text("utf-8").count("A title") == len(every.BENCHMARKS)
    played(monkeypatch, {"exact": 0})
    assert every.main(again, tmp_path / "R.md") == 1


@pytest.mark.parametrize("wrong", [["nothing", "--reports", "x"], ["exact"]])
def test_wrong_words(wrong: list[str], tmp_path: Path) -> None:
    """A benchmark that there is not, or one alone with nowhere to find the others."""
    with pytest.raises(SystemExit) as ended:
        every.main(wrong, tmp_path / "R.md")
    assert ended.value.code == 2 and not (tmp_path / "R.md").exists()


def test_caches_are_told_as_the_kernel_has_them(tmp_path: Path) -> None:
    for i, told in enumerate([("1", "Data", "48K"), ("2", "Unified", "1024K")]):
        (tmp_path / f"index{i}").mkdir()
        for name, value in zip(("level", "type", "size"), told, strict=True):
            (tmp_path / f"index{i}" / name).write_text(f"{value}\n")
    assert machine._caches(tmp_path) == "L1 Data 48K, L2 Unified 1024K"
    assert machine._caches(tmp_path / "nowhere") == ""


def test_what_is_not_installed_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray is an extra; its absence is no error."""
    monkeypatch.setattr(machine, "PACKAGES", ["torch", "no-such-package"])
    found = machine.versions()
    assert found["no-such-package"] == "–" and found["torch"] != "–"
    assert os.sep not in "".join(found.values())
