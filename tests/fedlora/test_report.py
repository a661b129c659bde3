"""Reports: what a table and a CSV say of given rows."""

import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table

from fedlora import report
from fedlora.errors import UserError
from tests.fedlora.rows import FOUR, ROWS, START, private, round_row


def printed(table: Table) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=140).print(table)
    return out.getvalue().splitlines()


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_load_reads_every_row(tmp_path: Path) -> None:
    """Rows come back as they were written."""
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    assert report.load(path) == ROWS


def test_load_names_what_is_wrong(tmp_path: Path) -> None:
    """A missing or damaged file is an error with the file, the line and the mend."""
    path = tmp_path / "metrics.jsonl"
    with pytest.raises(UserError, match=r"metrics\.jsonl does not exist"):
        report.load(path)
    path.write_text(json.dumps(START) + '\n{"kind": "rou', encoding="utf-8")
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2 .* remove the line"):
        report.load(path)


@given(st.integers(min_value=0, max_value=10**15))
def test_amount_is_right_to_three_digits(size: int) -> None:
    """Bytes for people: the number meant within half a percent, in at most four characters."""
    value, unit = report.amount(size).split()
    power = ("B", "kB", "MB", "GB", "TB").index(unit)
    assert abs(float(value) * 1000**power - size) <= 0.005 * size
    assert float(value) < 1000 or unit == "TB"


def test_numbers_for_people() -> None:
    """Decimal units; a dash for what is unknown."""
    assert [report.amount(n) for n in (0, 999, 1000, 999_600, 1_230_000)] == [
        "0 B",
        "999 B",
        "1 kB",
        "1 MB",
        "1.23 MB",
    ]
    assert report.amount(None) == report.number(None) == "–"
    assert report.number(0.8461) == "0.846"


def test_rounds_table_has_a_line_a_round() -> None:
    """Each round with its numbers, client rows aside; no column for troubles that nobody had."""
    lines = printed(report.rounds_table(ROWS))
    body = [cells(line) for line in lines if line.strip()]
    assert body[0] == ["round", "score", "personalised", "loss", "up", "down", "seconds"]
    assert body[2] == ["0", "0.846", "–", "–", "0 B", "0 B", "12.3"]
    assert body[3] == ["1", "0.846", "0.500", "0.2500", "1.23 MB", "999 B", "12.3"]
    assert len(body) == 5


def test_rounds_table_says_who_was_left_out_and_why() -> None:
    """Failed and dropped clients appear with their reasons, taken literally."""
    rows = [round_row(1, failed={"[red]a": "NaN loss"}), round_row(2, dropped={"b": "norm 9 > 1"})]
    text = "\n".join(printed(report.rounds_table(rows)))
    assert "failed" in text and "dropped" in text
    assert "[red]a: NaN loss" in text and "b: norm 9 > 1" in text


@given(st.floats(0, 1e6))
def test_an_epsilon_is_never_shown_smaller_than_it_is(epsilon: float) -> None:
    """ε is a bound, so it is rounded up: by less than a hundredth, and not where it fits."""
    shown = float(report.spent(epsilon))
    assert epsilon <= shown < epsilon + 0.01 + 1e-9
    assert report.spent(shown) == f"{shown:.2f}"


def test_rounds_table_shows_epsilon_in_place_of_a_loss_nobody_tells() -> None:
    """A private run has a column for ε, and one for the loss only if a round has it."""
    rows = [*private(FOUR), round_row(6, epsilon=None, delta=None, loss=None)]
    body = [cells(line) for line in printed(report.rounds_table(rows)) if line.strip()]
    assert body[0] == ["round", "score", "personalised", "ε", "up", "down", "seconds"]
    assert [line[3] for line in body[2:]] == [
        "0.00",
        "1.90",
        "2.30",
        "2.60",
        "2.80",
        "2.99",
        "no bound",
    ]
    assert "loss" in printed(report.rounds_table([*rows, round_row(7, epsilon=3.0)]))[1]


def test_a_loss_that_is_missing_keeps_its_column_where_nothing_is_private() -> None:
    """Rounds without a usable update have no loss, which is worth seeing."""
    header = printed(report.rounds_table([START]))[1]
    assert "loss" in header and "ε" not in header


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    """Files are written whole or not at all."""
    path = tmp_path / "comparison.csv"
    path.write_text("old", encoding="utf-8")
    with pytest.raises(TypeError), report.whole(path) as temporary:
        temporary.write_text("half", encoding="utf-8")
        raise TypeError
    assert path.read_text(encoding="utf-8") == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["comparison.csv"]


def test_no_number_is_cut_short() -> None:
    """A table that is wider than the console keeps every digit; one that fits is as ever."""
    row = round_row(1, score=0.5337, bytes_up=5_960_000, bytes_down=24_800_000, seconds=214.6)
    narrow, wide = (Console(file=io.StringIO(), width=w) for w in (40, 120))
    for console in (narrow, wide):
        report.show(report.rounds_table([row]), console)
        text = console.file.getvalue()
        assert "…" not in text
        for shown in ("personalised", "0.534", "5.96 MB", "24.8 MB", "214.6"):
            assert shown in text
    assert narrow.width == 40
