"""`fedlora report` on the command line: where the page goes, and mistakes."""

from pathlib import Path

import pytest

from fedlora import cli
from tests.fedlora.page.made import directory
from tests.fedlora.rows import ROWS


@pytest.fixture
def report(tmp_path, monkeypatch, capsys):
    """Runs the command beside `runs` with two runs and a comparison; (exit code, out, error)."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        directory(Path("runs"), name, ROWS)
        directory(Path("runs/both"), name, ROWS)

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["fedlora", "report", *arguments])
        with pytest.raises(SystemExit) as exit:
            cli.main()
        found = capsys.readouterr()
        return exit.value.code, found.out, found.err

    return call


@pytest.mark.parametrize(
    ("arguments", "path", "title"),
    [
        (["a"], "runs/a/report.html", "a"),
        (["runs/both"], "runs/both/report.html", "both"),
        (["both"], "runs/both/report.html", "both"),
        (["a", "b"], "report.html", "2 runs"),
        (["a", "both", "--output", "mine.html"], "mine.html", "3 runs"),
    ],
)
def test_where_the_page_goes(report, arguments, path, title):
    """Beside the run or comparison, or here, or where it was wanted; nothing else is left."""
    before = set(Path().rglob("*"))
    assert report(*arguments) == (0, f"report: {path}\n", "")
    assert set(Path().rglob("*")) - before == {Path(path)}
    assert f"<title>{title} – fedlora report</title>" in Path(path).read_text("utf-8")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing"], "there is no run 'nothing' in runs/; there are a, b"),
        (["a", "--output", "nowhere/x.html"], "nowhere/x.html cannot be written"),
        (["damaged"], "metrics.jsonl, line 1 is damaged"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(report, arguments, words):
    """And there is no page."""
    directory(Path("runs"), "damaged", []).metrics.write_text("{")
    words = words.replace("a, b", "a, b, damaged")
    code, out, err = report(*arguments)
    assert (code, out) == (2, "") and words in err and "Traceback" not in err
    assert not list(Path().rglob("*.html"))
