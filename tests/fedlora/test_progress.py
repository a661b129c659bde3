"""Progress: the same run on a terminal, in a pipe and in a log file."""

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from fedlora.progress import Observer, Progress

ROW = {"round": 3, "score": 0.81, "personalised": None, "loss": 0.5123, "seconds": 12.34}
ROW |= {"bytes_up": 1_230_000, "bytes_down": 0}
LINES = [
    "resumes after round 2 of 5",
    "round 3/5, train: [bold]films left out: NaN loss at step 7",
    "round 3/5: loss 0.5123, score 0.810; 1.23 MB up, 0 B down, 12.3 s",
    "the checkpoint of round 2 is damaged: round 1 is used",
]


def play(watcher: Observer) -> None:
    """A resumed run of five rounds, seen for one round."""
    watcher.begin(rounds=5, start=2)
    watcher.phase(3, "train", 2)
    watcher.client(3, "train", "tweets", 0.5)
    watcher.client(3, "train", "[bold]films", None, "NaN loss at step 7")
    watcher.phase(3, "aggregate", 0)
    watcher.round(ROW)
    watcher.note(LINES[-1])


def show(tmp_path: Path, **console: object) -> tuple[str, list[str]]:
    """What the console and the log file got."""
    out, log = io.StringIO(), tmp_path / "run.log"
    with Progress(5, Console(file=out, width=40, **console), log) as watcher:  # type: ignore[arg-type]
        play(watcher)
    return out.getvalue(), log.read_text(encoding="utf-8").splitlines()


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def test_a_pipe_gets_plain_lines(tmp_path: Path) -> None:
    """One line a round and one a client left out: no bars, no escapes, no wrapping, no markup."""
    out, _ = show(tmp_path)
    assert out.splitlines() == LINES


def test_a_dumb_terminal_gets_plain_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal that cannot move its cursor is treated like a pipe."""
    monkeypatch.setenv("TERM", "dumb")
    out, _ = show(tmp_path, force_terminal=True, no_color=True)
    assert re.sub(r"\x1b\[[\d;]*m", "", out).splitlines() == LINES


def test_a_terminal_gets_bars_and_what_went_wrong(tmp_path: Path) -> None:
    """Bars over rounds and clients; troubles and notes stay above them."""
    out, _ = show(tmp_path, force_terminal=True)
    assert "rounds" in out and "\x1b[2K" in out  # a bar was drawn and taken down
    assert LINES[1] in out and LINES[3] in out


def test_no_color_is_obeyed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NO_COLOR on a terminal: bars without colours."""
    coloured = re.compile(r"\x1b\[[\d;]*3\d")
    assert coloured.search(show(tmp_path, force_terminal=True)[0])
    monkeypatch.setenv("NO_COLOR", "1")
    assert not coloured.search(show(tmp_path, force_terminal=True)[0])


@pytest.mark.parametrize("terminal", [True, False])
def test_the_log_is_the_same_everywhere(tmp_path: Path, terminal: bool) -> None:
    """The log holds every line, dated, whatever the console is; a resumed run appends."""
    dated = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (.*)")
    show(tmp_path, force_terminal=terminal)
    _, log = show(tmp_path, force_terminal=terminal)
    assert [dated.fullmatch(line)[1] for line in log] == LINES * 2  # type: ignore[index]


def test_a_log_may_be_without_time(tmp_path: Path) -> None:
    """Where how long a round takes is a secret."""
    log = tmp_path / "run.log"
    with Progress(5, Console(quiet=True), log, dated=False) as watcher:
        play(watcher)
    assert log.read_text(encoding="utf-8").splitlines() == LINES


def test_a_failing_run_ends_bars_and_log() -> None:
    """An error passes through, and the terminal is put back as it was."""
    out = io.StringIO()
    with pytest.raises(RuntimeError), Progress(5, Console(file=out, force_terminal=True), None):
        raise RuntimeError
    assert out.getvalue().count("\x1b[?25l") == out.getvalue().count("\x1b[?25h") == 1


def test_the_observer_does_nothing() -> None:
    """Whoever watches a part of a run overrides that part only."""
    play(Observer())
