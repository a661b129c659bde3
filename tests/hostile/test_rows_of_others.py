"""Promise: whatever a server puts into a run's files, who reads them sees a page or one error."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fedlora import answers, cli, lines, report
from fedlora.page.collect import read
from fedlora.page.html import page
from server.promise import promise
from tests.fedlora.page.made import directory
from tests.fedlora.rows import ROWS, client_row, round_row
from tests.hostile.test_forged_events import JSON

LONG = "1" * 5_000
ANSWER = {"round": 1, "row": 0, "prompt": "a", "reference": "b", "answer": "c"}


def line(row: dict[str, Any], **raw: str) -> str:
    """A row with some fields as they are written."""
    return json.dumps(row)[:-1] + "".join(f', "{k}": {v}' for k, v in raw.items()) + "}"


@pytest.mark.parametrize(
    ("file", "text"),
    [
        *(
            ("metrics.jsonl", line(round_row(1), **{key: value}))
            for key, value in [
                *(("round", '"1"'), ("round", "1e300"), ("round", "-1"), ("round", LONG)),
                *(("failed", '["a"]'), ("failed", '"abc"'), ("dropped", '{"a": {}}')),
                *(("bytes_up", '"1"'), ("bytes_up", "1" * 401), ("bytes_down", "null")),
                *(("score", '"x"'), ("score", "[1]"), ("score", "1e308"), ("loss", "true")),
                *(("epsilon", '"3"'), ("delta", "NaN"), ("seconds", "Infinity"), ("kind", "[]")),
                *(("x", LONG), ("x", "[" * 100_000)),
            ]
        ),
        ("metrics.jsonl", line(client_row(1, "a"), client='{"a": 1}')),
        ("metrics.jsonl", line(client_row(1, "a"), client="5")),
        *(("metrics.jsonl", text) for text in ("[" * 100_000, "\x1b[2J", "", "[]", LONG)),
        ("answers.jsonl", line(ANSWER, prompt="5")),
        ("answers.jsonl", line(ANSWER, answer='{"a": 1}')),
        ("run.json", '{"experiment": "0", "environment": "zzz"}'),
        ("run.json", '{"experiment": "0", "environment": {"a": ["<script>"]}}'),
        ("run.json", '{"experiment": 0}'),
        ("run.json", "[" * 100_000),
    ],
)
def test_what_is_no_row_is_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    file: str,
    text: str,
) -> None:
    """`fedlora report`: the file, and its line, in one message that steers no terminal; exit 2."""
    run = directory(tmp_path, "far", ROWS)
    before = run.metrics.read_text() if file == "metrics.jsonl" else ""
    (run.path / file).write_text(f"{before}{text}\n")
    monkeypatch.setattr("sys.argv", ["fedlora", "report", str(run.path)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    err = capsys.readouterr().err
    assert end.value.code == 2 and "Traceback" not in err and len(err) < 2_000
    assert f"{file} is damaged" in err or f"{file}, line {len(before.splitlines()) + 1} is" in err
    assert err.replace("\n", "").isprintable()


NUMBERS = st.none() | st.floats() | st.integers(-10, 10**16) | st.sampled_from([5e-324, 1e300, 0.5])
ROW = st.builds(
    lambda make, changes: {**make, **changes},
    st.builds(round_row, st.integers(0, 4) | st.just(2**53 - 1))
    | st.builds(client_row, st.integers(0, 4) | st.just(2**53 - 1), st.text(max_size=3)),
    st.dictionaries(
        st.sampled_from([*round_row(0), "test_loss", "rouge_l", "epsilon", "delta", "x"][1:]),
        NUMBERS | JSON,
        max_size=3,
    ),
)


def typed(row: dict[str, Any]) -> bool:
    try:
        lines.METRICS.validate_python(row)
    except ValidationError:
        return False
    return True


@settings(deadline=None, max_examples=40)
@given(found=st.lists(st.lists(ROW, max_size=6), min_size=1, max_size=2))
def test_what_has_the_types_of_rows_can_be_shown(
    tmp_path_factory: pytest.TempPathFactory, found: list[list[dict[str, Any]]]
) -> None:
    """Any numbers and texts: the page, the table on the terminal, the promise."""
    folder, runs = tmp_path_factory.mktemp("rows"), []
    privacy = {"accountant": "rdp", "mode": "local", "insecure_seed": "null"}
    for seed, rows in enumerate(found):
        own = [row for row in [round_row(0), *rows] if typed(row)]
        run = directory(folder, f"r{seed}", own, {"run.seed": seed})
        runs.append(read(run))
        loaded = report.load(run.metrics)
        report.rounds_table(loaded, True)
        promise(loaded, privacy)
    page(runs, "far")


@pytest.mark.parametrize("other", [0.5000000000000001, 1e300, -1e300, 1e-300])
def test_scores_as_near_and_as_far_as_can_be_are_drawn(tmp_path: Path, other: float) -> None:
    """Such as two means of the same numbers, which differ in their last bit."""
    rows = [round_row(n, score=score, epsilon=score) for n, score in enumerate((0.5, other))]
    assert "NaN" not in page([read(directory(tmp_path, "far", rows))], "far")


@pytest.mark.parametrize("text", ["[" * 100_000, LONG, '{"round": Infinity}', "\udcff", "{}"])
def test_a_line_that_is_none_is_left_out_when_a_run_goes_on(tmp_path: Path, text: str) -> None:
    """Rewound metrics have the rounds before, and nothing of that."""
    run = directory(tmp_path, "far", [])
    row = line({**round_row(0), "round": -1}) + "\n"
    run.metrics.write_text(f"{row}{text}\n", errors="surrogateescape")
    run.resume()
    assert run.metrics.read_text() == row


def test_an_answer_with_any_character_is_read(tmp_path: Path) -> None:
    """A model says what it says: a separator of lines ends no line of the file."""
    path = tmp_path / "answers.jsonl"
    said = [answers.Answer(1, 0, "a\u2028b", "c\x85", "d\x0b\n\r\x1c")]
    path.write_text(answers.write(said), "utf-8")
    assert answers.read(path) == said
