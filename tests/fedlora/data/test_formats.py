"""What a file's bytes are as rows: text as it is written, and errors with their line."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedlora.data.formats import FORMS, comma_separated, json_rows, parquet, tab_separated

AS_WRITTEN = ["007", "1.10", "1e5", "12345678901234567890123", "-0", "NA", "null", "nan", "true"]
DATES = ["2024-01-31", "31/01/2024", "False", " a ", "a\u2028b", "a\x0bb", "a\r\nb", 'say "a", b']


def columns(read: Any, content: str | bytes) -> dict[str, list[Any]]:
    found = read(io.BytesIO(content if isinstance(content, bytes) else content.encode()))
    return {name: list(values) for name, values in found.columns.items()}


def written(rows: list[list[str]], delimiter: str = ",") -> str:
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=delimiter).writerows(rows)
    return file.getvalue()


def test_cells_stay_as_they_are_written() -> None:
    """None of them becomes a number, a date or nothing; only an empty one is nothing."""
    values = [*AS_WRITTEN, *DATES]
    found = columns(comma_separated, written([["a", "b"], *([v, "x"] for v in values), ["", "y"]]))
    assert found == {"a": [*values, None], "b": ["x"] * len(values) + ["y"]}


def test_quotes_within_a_value_are_its_own() -> None:
    """Also behind a space, where they are written as quotes within quotes."""
    values = [' "a"', ' "a" b', 'b "a"', ' "', "b", "b"]
    assert columns(comma_separated, written([["b"], *([v] for v in values)])) == {"b": values}


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["unix", "windows", "old mac"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "with a mark"])
@pytest.mark.parametrize("between", ",;\t|")
def test_dialects_are_one_table(between: str, mark: bytes, end: str) -> None:
    """By the delimiter of the header, whatever the lines end in, with a byte order mark or none and
    lines without a character."""
    lines = [f"text{between} label", f'"one{between} two"{between}x', "", f"three{between}y", ""]
    content = mark + end.join(lines).encode()
    rows = {"text": [f"one{between} two", "three"], "label": ["x", "y"]}
    assert columns(comma_separated, content) == columns(tab_separated, content) == rows


def test_tabs_and_commas_of_one_header() -> None:
    """Where two delimiters would do, the ending of the file says which."""
    content = "text, or so\tlabel\na, b\tx\n"
    assert columns(tab_separated, content) == {"text, or so": ["a, b"], "label": ["x"]}


FAULTS = {
    "two tables": ("text,label\na,x\n\ufefftext , label\nb,y\n", "line 3 names the columns again"),
    "a space before quotes": ('text, label\na, "x"\n', """line 2 has a space .* of "x","""),
    "a field more": ("text,label\na,x\nb, c,y\n", "line 3 has 3 fields, and line 1 names 2"),
    "in every row": ("text,label\na,b,x\n", "line 2 has 3 fields"),
    "a delimiter at the end": ("text,label\na,x,\n", "line 2 has 3 fields"),
    "a field less": ("text,label\na\n", "line 2 has 1 fields"),
    "after a value of two lines": ('text,label\n"a\nb",x\n\nc,d,y\n', "line 5 has 3 fields"),
    "text after a quote": ('text,label\na,x\n"b" c,y\n', "begins in line 3 .* double quote"),
    "a quote that stays open": ('text,label\na,x\n"b,y\nc,x\n', "begins in line 3 .* double quote"),
    "a quote with a backslash": ('text,label\n"b \\"c\\" d",y\n', "begins in line 2 .* double"),
    "two quotes, rows between": (
        'text,label\na,x\n"b,y\nc, d,x\n"',
        "line 3 has 1 fields",
    ),
    "two quotes in rows": ('text,label\na,x\n"b,y\nc,x\nd",y\n', "line 3 has 3 lines that look"),
    "and the label first": ('label\ttext\nx\ta\ny\t"b\nx\tc\ny\td"\n', "line 3 has 3 lines"),
    "a name twice": ("text,label,text\na,x,b\n", "names the column 'text' twice"),
    "another encoding": ("text,label\na,x\ncafé,y\n".encode("latin-1"), "line 3 is not UTF-8"),
    "wide characters": ("text,label\na,x\n".encode("utf-16"), "save the file as UTF-8"),
    "wide, without a mark": ("text,label\na,x\n".encode("utf-16-le"), "save the file as UTF-8"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_what_is_no_table_is_said_with_its_line(case: str) -> None:
    """None of it shifts a column, loses a row or guesses a letter."""
    content, says = FAULTS[case]
    with pytest.raises(ValueError, match=says):
        columns(comma_separated, content)


def test_values_of_several_lines_are_one() -> None:
    """As letters are written, with a comma in each line."""
    letter = "Dear Ann, thanks\nfor x, y\nyours, Bob"
    found = columns(comma_separated, written([["text", "label"], [letter, "x"], ["y", "y"]]))
    assert found == {"text": [letter, "y"], "label": ["x", "y"]}


def test_a_quote_within_a_value_is_a_character() -> None:
    """As inches are written."""
    found = columns(comma_separated, 'text,label\na 5" nail,x\n')
    assert found == {"text": ['a 5" nail'], "label": ["x"]}


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "with a mark"])
@pytest.mark.parametrize("lines", [True, False], ids=["lines", "list"])
def test_json_keeps_numbers_as_they_are_written(lines: bool, mark: bytes, end: str) -> None:
    """As one object a line, or a list; a key that comes late or changes its kind is a column like
    the others, and what is not a number is nothing."""
    rows = [
        '{"a": 7, "deep": {"b": [1.10, true, null]}}',
        '{"a": "x\u2028y", "late": 1e5}',
        '{"late": NaN, "a": 123456789012345678901}',
    ]
    content = end.join(rows) if lines else f"[{f',{end}'.join(rows)}]"
    assert columns(json_rows, mark + content.encode()) == {
        "a": ["7", "x\u2028y", "123456789012345678901"],
        "deep": [{"b": ["1.10", True, None]}, None, None],
        "late": [None, "1e5", None],
    }


def test_a_key_that_first_comes_late_is_there() -> None:
    """However many rows go before it."""
    rows = [json.dumps({"a": "x" * 50}) for _ in range(30_000)] + [json.dumps({"a": "y", "b": 7})]
    found = columns(json_rows, "\n".join(rows))
    assert found["b"] == [None] * 30_000 + ["7"] and found["a"][-1] == "y"


JSON_FAULTS = {
    "a broken line": ('{"a": 1}\n{"a": \n', "line 2 is no JSON"),
    "a pretty object": ('{\n  "a": 1\n}\n', "line 1 is no JSON .* one object a line, or a list"),
    "a broken list": ('[{"a": 1},\n{"a" 2}]', "line 2 is no JSON"),
    "two lists": ("[1]\n[2]\n", "line 2 is no JSON"),
    "a row that is a list": ('{"a": 1}\n[1, 2]\n', "line 2 is a list of 2"),
    "a list of text": ('[{"a": 1}, "b"]', "row 2 is str"),
    "a key twice": ('{"a": 1, "b": 2, "a": 3}\n', "line 1: .* the key 'a' twice"),
    "half of a character": ('{"a": "b"}\n{"a": "\\ud83d"}\n', "line 2 has half of a character"),
    "another encoding": ('{"a": "b"}\n{"a": "é"}\n'.encode("latin-1"), "line 2 is not UTF-8"),
    "in a list": ('[{"a": "b"},\n{"a": "é"}]\n'.encode("latin-1"), "line 2 is not UTF-8"),
    "endless": ("[" * 100_000, "recursion"),
}


@pytest.mark.parametrize("case", JSON_FAULTS)
def test_what_is_no_json_is_said_with_its_line(case: str) -> None:
    """And what JSON lets pass in silence, as the first of two values of a key, is said too."""
    content, says = JSON_FAULTS[case]
    with pytest.raises(ValueError, match=says):
        columns(json_rows, content)


def test_characters_of_two_halves_are_whole() -> None:
    """As ASCII files have them; and a backslash before them is a backslash."""
    content = json.dumps({"a": "😀", "b": "\\ud83d"})
    assert columns(json_rows, content) == {"a": ["😀"], "b": ["\\ud83d"]}


def test_parquet_has_the_values_of_arrow(tmp_path: Path) -> None:
    """Pandas' categories as their names, numbers as they were meant; a column twice is said."""
    kinds = pa.array(["x", "y", "x"]).dictionary_encode()
    single = pa.array([0.1, None, 7], pa.float32())
    table = pa.table({"kind": kinds, "number": [1, None, 3], "single": single})
    pq.write_table(table, tmp_path / "a.parquet")
    found = parquet((tmp_path / "a.parquet").open("rb"))
    right = {"kind": ["x", "y", "x"], "number": [1, None, 3], "single": [0.1, None, 7.0]}
    assert found.columns == right
    pq.write_table(table.rename_columns(["a", "a", "b"]), tmp_path / "b.parquet")
    with pytest.raises(ValueError, match="'a' twice"):
        parquet((tmp_path / "b.parquet").open("rb"))


def test_every_form_is_an_ending_in_lower_case() -> None:
    assert all(form == form.lower() and form.startswith(".") for form in FORMS)
