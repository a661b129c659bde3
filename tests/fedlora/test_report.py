"""Reports: what a table, a CSV and a picture say of given rows."""

import csv
import io
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table

from fedlora import report
from fedlora.errors import UserError
from fedlora.report import Result


def round_row(number: int, **changes: Any) -> dict[str, Any]:
    row = {"kind": "round", "round": number, "score": 0.8461, "personalised": 0.5, "loss": 0.25}
    row |= {"bytes_up": 1_230_000, "bytes_down": 999, "clients": 2, "seconds": 12.34}
    return row | {"failed": {}, "dropped": {}} | changes


def client_row(number: int, client: str, **changes: Any) -> dict[str, Any]:
    return {"kind": "client", "round": number, "client": client, "score": 0.7} | changes


START = round_row(0, loss=None, personalised=None, bytes_up=0, bytes_down=0)
ROWS = [START, round_row(1), client_row(1, "a"), client_row(1, "b", score=None), round_row(2)]
RESULTS = [
    Result("fedex", 0.84, 0.85, 12345, 10**6, 2 * 10**6, 30.0),
    Result("local", None, 0.79, 12345, 0, 0, 20.0),
]


def printed(table: Table) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=140).print(table)
    return out.getvalue().splitlines()


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def is_png(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 1000


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


def test_comparison_table_and_csv_agree(tmp_path: Path) -> None:
    """A line a method; the CSV holds the fields of Result, unrounded, empty where unknown."""
    body = [cells(line) for line in printed(report.comparison_table(RESULTS)) if line.strip()]
    assert body[2] == ["fedex", "0.840", "0.850", "12,345", "1 MB", "2 MB", "30.0"]
    assert body[3] == ["local", "–", "0.790", "12,345", "0 B", "0 B", "20.0"]
    report.comparison_csv(RESULTS, tmp_path / "comparison.csv")
    with (tmp_path / "comparison.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["method"] == "fedex" and float(rows[0]["score"]) == 0.84
    assert rows[1]["score"] == "" and rows[1]["bytes_up"] == "0"
    assert [p.name for p in tmp_path.iterdir()] == ["comparison.csv"]


@pytest.mark.parametrize("rows", [ROWS, ROWS[:1], [], [client_row(1, str(i)) for i in range(20)]])
def test_curves_draws_whatever_is_known(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    """A whole run, one that just began, nulls and many clients all give a picture."""
    report.curves(rows, tmp_path / "curves.png")
    assert is_png(tmp_path / "curves.png")
    assert [p.name for p in tmp_path.iterdir()] == ["curves.png"]


def test_comparison_picture_draws_methods_and_baselines(tmp_path: Path) -> None:
    """Methods that send, baselines that do not, and one without a score."""
    runs = {"fedex": ROWS, "local": [START], "mute": [round_row(1, score=None)]}
    for name, chosen in {"all": runs, "baseline": {"local": [START]}, "none": {}}.items():
        report.comparison_picture(chosen, tmp_path / f"{name}.png")
        assert is_png(tmp_path / f"{name}.png")


def test_cost_adds_up_both_directions() -> None:
    """The abscissa is megabytes up and down until then, rounds without a score included."""
    rounds = [START, round_row(1, score=None), round_row(2, score=0.9)]
    assert list(report._cost(rounds)) == [(0.0, 0.8461), (pytest.approx(2 * 1.230999), 0.9)]


@given(st.lists(st.floats(0, 1), max_size=9).map(sorted))
def test_labels_keep_apart_and_inside(heights: list[float]) -> None:
    """Labels never overlap or leave the panel, and stay put where they already fit."""
    moved = report.spread(heights, 0.1, 0.0, 1.0)
    assert all(b - a >= 0.1 - 1e-9 for a, b in pairwise(moved))
    assert all(-1e-9 <= y <= 1 + 1e-9 for y in moved)
    if all(b - a >= 0.1 for a, b in pairwise(heights)):
        assert moved == pytest.approx(heights)


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    """Files are written whole or not at all."""
    path = tmp_path / "comparison.csv"
    path.write_text("old", encoding="utf-8")
    with pytest.raises(TypeError):
        report.comparison_csv([RESULTS[0], None], path)  # type: ignore[list-item]
    assert path.read_text(encoding="utf-8") == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["comparison.csv"]
