"""Rows from the bytes of a file. Text stays as the file has it: no "007" is a 7, no "NA" nothing.

Every function takes a binary stream from its start, and raises ValueError with the line where
something is wrong: a row with a field too many shifts all that follow it, if nobody counts.
"""

import csv
import io
import json
import re
import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Features

from fedlora.data.columns import Sheet, kind

UTF8 = b"\xef\xbb\xbf"
UTF16 = (b"\xff\xfe", b"\xfe\xff")
SPACE = b" \t\r\n"


def comma_separated(file: IO[bytes]) -> Sheet:
    return separated(file, ",;\t|")


def tab_separated(file: IO[bytes]) -> Sheet:
    return separated(file, "\t,;|")


def separated(file: IO[bytes], delimiters: str) -> Sheet:
    """A table with its columns' names in the first line, by whose delimiter all is separated: the
    first of those that give it most fields. An empty field is None."""
    csv.field_size_limit(sys.maxsize)  # 128 kB otherwise
    lines = _lines(file)
    first = next(lines, "")
    between = max(delimiters, key=lambda d: len(next(csv.reader([first], delimiter=d), ())))
    rows = _records(chain([first], lines), between)
    names = [name.strip() for name in next(rows, (1, [], []))[1]]
    for name in names:
        if name and names.count(name) > 1:
            raise ValueError(f"line 1 names the column {name!r} twice")
    columns: list[list[str | None]] = [[] for _ in names]
    doubtful = []
    for line, row, own in rows:
        if len(row) != len(names):
            raise ValueError(
                f"line {line} has {len(row)} fields, and line 1 names {len(names)} columns: a "
                f"value with {between!r} in it stands in double quotes"
            )
        if len(names) > 1 and [value.strip(" \ufeff") for value in row] == names:
            raise ValueError(
                f"line {line} names the columns again, as where one table was put behind another"
            )
        _check_quotes(line, row, between, "".join(own))
        if len(own) > 1 and all(one.count(between) == len(names) - 1 > 0 for one in own):
            doubtful.append((line, [one.strip('"\r\n ').split(between) for one in own]))
        for values, value in zip(columns, row, strict=True):
            values.append(value or None)
    _open_quotes(doubtful, columns)
    return Sheet({name: values for name, values in zip(names, columns, strict=True) if name})


def _check_quotes(line: int, row: list[str], between: str, written: str) -> None:
    """Raises ValueError where a space before a quote makes characters of a value's quotes."""
    for value in row:
        inner = value.strip()
        quoted = inner[:1] == inner[-1:] == '"' and value[0] == " " and len(inner) > 1
        if quoted and between + value in written:
            raise ValueError(
                f"line {line} has a space between {between!r} and the double quote of {inner}, "
                "which makes the quotes a part of the value"
            )


def _open_quotes(doubtful: list[tuple[int, list[list[str]]]], columns: list[list[Any]]) -> None:
    """Raises ValueError where each line of a row of several looks like a row of its own, with some
    value that other rows have too: then a quote was meant as a character, and two of them made one
    value of all that is between."""
    known = [set(values) - {None} for values in columns] if doubtful else []
    for line, rows in doubtful:
        if all(any(map(set.__contains__, known, row)) for row in rows):
            raise ValueError(
                f"the row that begins in line {line} has {len(rows)} lines that look like rows of "
                "their own: it has a double quote too many; within quotes, a quote is written twice"
            )


def json_rows(file: IO[bytes]) -> Sheet:
    """A list of objects, or one object a line; a key that a row lacks is None there. Numbers are
    text, as the file writes them."""
    start = file.read(1)
    while start and start in UTF8 + SPACE:
        start = file.read(1)
    file.seek(0)
    if start == b"[":
        whole = _value(_decoded(file.read(), 1), 1)
        return _sheet((f"row {i}", row) for i, row in enumerate(whole, start=1))
    lines = enumerate(_lines(file), start=1)
    return _sheet((f"line {i}", _value(line.strip(), i)) for i, line in lines if line.strip())


def parquet(file: IO[bytes]) -> Sheet:
    """Values are those of Arrow; columns of Datasets' class labels have names for their numbers."""
    table = pq.ParquetFile(file).read()
    names = table.column_names
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"it names the column {name!r} twice")
    told = b"huggingface" in (table.schema.metadata or {})
    features = Features.from_arrow_schema(table.schema).items() if told else ()
    classes = {name: list(f.names) for name, f in features if isinstance(f, ClassLabel)}
    return Sheet({name: _values(table[name]) for name in names}, classes)


def _values(column: pa.ChunkedArray) -> list[Any]:
    """Of single precision the shortest number that stands for each: 0.1, not 0.10000000149."""
    values: list[Any] = column.to_pylist()
    if pa.types.is_float32(column.type):
        return [value and float(str(np.float32(value))) for value in values]
    return values


def _lines(file: IO[bytes]) -> Iterator[str]:
    """Lines with their ends: \\n, \\r\\n or \\r, and no other, as texts may have U+2028."""
    for number, line in enumerate(file, start=1):
        found = _decoded(line, number)
        yield from io.StringIO(found, newline="") if "\r" in found else (found,)


def _decoded(content: bytes, line: int) -> str:
    if line == 1:
        if content.startswith(UTF16) or b"\0" in content:
            raise ValueError("line 1 is not UTF-8, but perhaps UTF-16: save the file as UTF-8")
        content = content.removeprefix(UTF8)
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line += content.count(b"\n", 0, error.start)
        byte = content[error.start]
        raise ValueError(
            f"line {line} is not UTF-8 (a byte 0x{byte:02x}): save the file as UTF-8"
        ) from None


def _records(lines: Iterable[str], delimiter: str) -> Iterator[tuple[int, list[str], list[str]]]:
    """(line of its beginning, fields, lines) of each row; lines without a character are none."""
    own: list[str] = []

    def kept() -> Iterator[str]:
        for line in lines:
            own.append(line)
            yield line

    reader = csv.reader(kept(), delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1
        own.clear()
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise ValueError(
                f"the row that begins in line {line} has a double quote too many or too few "
                f"({error}): within quotes, a quote is written twice"
            ) from None
        if row is None:
            return
        if row:
            yield line, row, own


def _value(content: str, line: int) -> Any:
    """What JSON that begins in this line stands for."""
    try:
        value = DECODER.decode(content)
        if HALF.search(content):
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except json.JSONDecodeError as error:
        raise ValueError(
            f"line {line + error.lineno - 1} is no JSON ({error.msg}): rows are one object a line, "
            "or a list of objects"
        ) from None
    except UnicodeEncodeError:
        raise ValueError(f"line {line} has half of a character (\\ud…)") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"line {line}: {error}") from None


def _sheet(rows: Iterable[tuple[str, Any]]) -> Sheet:
    """Of rows, each with its place in words."""
    columns: dict[str, list[Any]] = {}
    for count, (place, row) in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(f'{place} is {kind(row)}: a row is an object, as {{"text": "…"}}')
        for name, value in row.items():
            if name not in columns:
                columns[name] = [None] * count
            columns[name].append(value)
        if len(row) < len(columns):
            for values in columns.values():
                values.extend([None] * (count + 1 - len(values)))
    return Sheet(columns)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"an object has the key {max(names, key=names.count)!r} twice")
    return found


def _constant(name: str) -> str | None:
    return None if name == "NaN" else name  # as pandas writes what is missing


DECODER = json.JSONDecoder(
    parse_int=str, parse_float=str, parse_constant=_constant, object_pairs_hook=_unique
)
HALF = re.compile(r"\\u[dD][89a-fA-F]")  # what may be one of a pair of surrogates

FORMS = {
    ".csv": comma_separated,
    ".tsv": tab_separated,
    ".jsonl": json_rows,
    ".ndjson": json_rows,
    ".json": json_rows,
    ".parquet": parquet,
}
