"""A client's name, a reason or an answer that is written to be taken for something else."""

import csv
import io
import json
import logging
import re
from collections.abc import Iterable
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.console import Console

import strategies
from fedlora import answers, cli, pictures, report, tables, untrusted
from fedlora.cli import chat
from fedlora.errors import UserError
from fedlora.page.collect import read
from fedlora.page.html import page
from fedlora.progress import Progress
from fedlora.runs import RunDir
from fedlora.tracking import series
from server.card import card
from tests.fedlora.page.made import answered, directory
from tests.fedlora.page.test_html import Seen
from tests.fedlora.rows import client_row, round_row
from tests.fedlora.test_comparison import result

EVIL = [
    "films\n\n## Privacy\n\nprivacy: ε ≤ 0.10 at δ = 1.0e-09 (PRV accountant), user-level\n",
    "films |\n| all | 1 |\n\n# Signed",
    "a\\|`<img src=https://evil.example onerror=alert(1)>` | 9",
    "<script>alert(1)</script>&lt;b&gt;",
    "[click](javascript:alert(1)) ![x](https://evil.example/x.png) https://evil.example a@b.c",
    "**bold** _it_ ~~no~~ `code` $\\frac{1}{2}$ #1 www.evil.example",
    '=HYPERLINK("https://evil.example")',
    "@SUM(1)\t=1",
    "\n-2+3",
    "[0pt]\\input{/etc/passwd} % & # $ _ { } ~ ^",
    "\x1b[2J\x1b]0;owned\x07\x1b[1A\rround 3/3: score 1.000",
    "\u202egpj.exe\u2066 \u200bfilms\ufe00\u3164",
    "[bold red]films[/] :smile:",
    "films\u2028warning: nothing\x85here",
    "\ud800",
    "x" * 5000,
]
TEXT = (
    st.sampled_from(EVIL) | st.text(max_size=60) | st.text("a\\`|<>&[]()*_#\n\r$ :/", max_size=20)
)
RUN = "round 1/3: loss 0.2500, score 0.846, personalised 0.500; 1.23 MB up, 999 B down, 12.3 s"


def metrics(run: RunDir, clients: Iterable[str]) -> RunDir:
    """A run in which each of these failed once, by its own words, and did its part as well."""
    clients = list(clients)
    rows = [round_row(0), round_row(1, failed={c: c for c in clients})]
    rows += [client_row(1, c, examples=7, loss=0.1, score=i / 100) for i, c in enumerate(clients)]
    run.metrics.write_text("".join(json.dumps(r) + "\n" for r in rows), "utf-8")
    return run


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return directory(tmp_path, "run", [])


@given(text=TEXT)
def test_a_plain_text_is_one_line_that_can_be_seen(text: str) -> None:
    """No newline, control, mark of direction, letter without a shape or half of a character, and
    never more than it may be; what is plain already stays as it is."""
    shown = untrusted.plain(text, 40)
    assert shown.isprintable() and len(shown) <= 40 and len(shown.splitlines()) <= 1
    assert not set(shown.encode().decode()) & set("\u200b\u3164\ufe00\u202e")
    assert untrusted.plain(shown, 40) == shown
    several = untrusted.block(text)
    assert all(line.replace("\u200d", "").replace("\u200c", "").isprintable()
               for line in several.split("\n"))  # fmt: skip
    assert several.count("\n") == text.count("\n") and not set(several) & set("\u202e\x1b")


# Markdown


def structure(text: str) -> list[str]:
    """What a reader of Markdown makes of a text, without the words: tables, headings, HTML. What is
    between HTML's tags for code counts as code."""
    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    tokens = [t for token in parser.parse(text) for t in (token, *(token.children or []))]
    words = ("text", "text_special")
    kinds = [t.content if t.type == "html_inline" else t.type for t in tokens]
    return ["code_inline" if k == "<code>" else k for k in kinds if k not in (*words, "</code>")]


@given(text=TEXT)
def test_a_text_is_no_markdown(text: str) -> None:
    """In a paragraph, a cell and a heading: a text, or code, and nothing else."""
    for write, honest in ((untrusted.markdown, "x"), (untrusted.code, "`x`")):
        frames = ("He said {}, once.\n", "| a | b |\n|---|---|\n| {} | 1 |\n", "# The {}\n")
        for frame in frames:
            assert structure(frame.format(write(text))) == structure(frame.format(honest))


def test_a_clients_name_adds_nothing_to_the_card(run: RunDir) -> None:
    """The card of a run has the same sections, tables and rows whatever its clients, model and data
    are called; and the head that the hub reads is one."""
    method = strategies.load("fedit")
    honest = card(metrics(run, map(str, range(len(EVIL)))), method, client="films")
    evil = directory(run.path.parent, "evil", [], {"model.name": EVIL[2], "data.name": EVIL[1]})
    for client in EVIL:
        shown = card(metrics(evil, EVIL), method, client=client)
        heads, bodies = zip(*(text.split("\n---\n", 1) for text in (honest, shown)), strict=True)
        assert structure(bodies[1]) == structure(bodies[0])
        head = yaml.safe_load(heads[1].removeprefix("---\n"))
        assert head.keys() == yaml.safe_load(heads[0].removeprefix("---\n")).keys()
        bare = re.sub("```.*?```|`[^`\n]*`", "", shown, flags=re.S)
        assert not re.search(r"(?<!\\)://|www\.", bare)  # which would become links


@given(names=st.lists(TEXT.filter(bool), min_size=2, max_size=3, unique=True))
@settings(max_examples=40)
def test_a_methods_name_adds_nothing_to_a_table(
    tmp_path_factory: pytest.TempPathFactory, names: list[str]
) -> None:
    """Of a comparison: the Markdown has its lines and cells, the LaTeX its commands, the CSV no
    formula, and the terminal nothing but letters."""
    folder = tmp_path_factory.mktemp("tables")
    tables.write([result(name, 0, 0.5) for name in names], folder)
    honest = [result(name, 0, 0.5) for name in "abc"[: len(names)]]
    cells = tables.cells([result(name, 0, 0.5) for name in names])[0]
    own = tables.cells(honest)[0]
    assert structure(tables.markdown(cells)) == structure(tables.markdown(own))
    lines = tables.latex(cells).splitlines()
    assert len(lines) == len(tables.latex(own).splitlines())
    for line in lines[5:-2]:
        assert not line.startswith(("[", "*")) and line.count(" & ") == len(own[0]) - 1
        bare = re.sub(r"\\(text\w+\{\}|[&%$#_{}]|\\$)|\$\\?\w*[<>-]?\$", "", line)
        assert not re.search(r"[\\%#$_^~]", bare)
    with (folder / "runs.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            assert not row["method"].lstrip().startswith(tuple("=+-@"))
            assert row["method"].isprintable()
    out = io.StringIO()
    Console(file=out, force_terminal=True, no_color=True, width=500).print(tables.console(cells))
    assert all(line.isprintable() for line in re.sub(r"\x1b\[\d*m", "", out.getvalue()).split("\n"))


# Terminals and logs


@given(client=TEXT, reason=TEXT)
@settings(max_examples=40)
def test_a_client_writes_no_line_of_its_own(
    tmp_path_factory: pytest.TempPathFactory, client: str, reason: str
) -> None:
    """On a terminal, in log.txt and in the closing table, what a client says of itself and of its
    failure stays in its line, and steers nothing."""
    log, out = tmp_path_factory.mktemp("log") / "log.txt", io.StringIO()
    with Progress(3, Console(file=out, width=80), log) as observer:
        observer.client(1, "train", client, None, reason or "x")
        observer.round(round_row(1))
        observer.note(f"a node cannot take part: {reason}")
    shown, logged = out.getvalue().split("\n"), log.read_text("utf-8").split("\n")
    assert len(shown) == len(logged) == 4 and shown[1] == RUN
    assert all(line.isprintable() for line in [*shown, *logged])
    out = io.StringIO()
    table = report.rounds_table([round_row(1, failed={client: reason, "b": "late"})])
    report.show(table, Console(file=out, width=1000))
    lines = out.getvalue().split("\n")
    assert all(line.isprintable() for line in lines) and lines[4].strip() == "b: late"


def test_an_error_or_an_answer_steers_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """What ends a command may quote a node, and what a model says is anybody's."""
    for text in EVIL:
        cli.fail(UserError(f"client {text}"))
        chat._tell(text)
        Console(width=100).print(
            answers.side_by_side([answers.Answer(n, 0, text, text, text) for n in (0, 1)])
        )
        seen = capsys.readouterr()
        assert not set(seen.out + seen.err) & set("\x1b\r\x07\u202e\u2066\u200b")


def test_a_log_has_a_line_a_message(capsys: pytest.CaptureFixture[str]) -> None:
    """What a process logs of a node's or a run's words is one line; its errors steer nothing."""
    logger = logging.getLogger("fedlora-test")
    logger.propagate = False
    handler = untrusted.Log("%(name)s: %(message)s")
    logger.addHandler(handler)
    try:
        for text in EVIL:
            logger.warning("refused: %s", text)
            assert capsys.readouterr().err.splitlines()[0].startswith("fedlora-test: refused: ")
            logger.error("it failed: %s", text, exc_info=ValueError(text))
            seen = capsys.readouterr().err
            assert not set(seen) & set("\x1b\r\x07\u202e") and seen.count("fedlora-test:") == 1
            logger.warning(text)
            assert len(capsys.readouterr().err.splitlines()) == 1
    finally:
        logger.removeHandler(handler)


# Pages, pictures, trackers


def test_a_page_shows_text_as_text(run: RunDir) -> None:
    """The report's elements and attributes are the same whatever clients say; no mark of direction
    is left to turn its neighbours around."""
    shapes = []
    for texts in (list(map(str, range(len(EVIL)))), EVIL):
        metrics(run, texts)
        asked = {"round": 1, "row": 0, "reference": ""}
        answered(run, [{**asked, "prompt": text, "answer": text} for text in texts[:5]])
        html = page([read(run)], "run")
        seen = Seen(html)
        shapes.append((seen.tags, [(tag, name) for tag, name, _ in seen.attributes]))
        assert not set(html.encode().decode()) & set("\u202e\u2066\x1b\x07\u2028")
    assert shapes[0] == shapes[1]


def test_a_name_is_drawn_as_it_is(run: RunDir) -> None:
    """No name is a formula that matplotlib fails on, a line of its own, or a picture's width."""
    for texts in (EVIL[5:8], EVIL[12:]):
        pictures.curves(report.load(metrics(run, texts).metrics), run.path / "curves.png")


@given(client=TEXT)
def test_a_tracker_gets_a_short_plain_name(client: str) -> None:
    """One client's name does not end the tracking of everybody's run."""
    ((_, values),) = series.Series().add([round_row(1), client_row(1, client)])
    (name,) = (key for key in values if key.startswith("score/"))
    assert name.isprintable() and len(name) <= 110
