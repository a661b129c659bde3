"""Text by others: one printable line of a bounded length, whatever it was."""

import pytest
from hypothesis import given
from hypothesis import strategies as some

from fedlora.untrusted import named, plain

ANYTHING = some.one_of(
    some.text(), some.binary(), some.lists(some.text()), some.floats(), some.integers(), some.none()
)


@given(ANYTHING, some.integers(1, 50))
def test_a_line_is_printable_and_short(text: object, most: int) -> None:
    line = plain(text, most)
    assert len(line) <= most and line.isprintable()
    assert plain(line, most) == line


def test_what_is_harmless_stays() -> None:
    """Letters of any script too."""
    assert plain("Größe: 3 × 4, 数据") == "Größe: 3 × 4, 数据"
    assert plain("a\n\tb\u2028c") == "a  b c"
    assert plain("\x1b[2J\u202eabc\x00") == r"\x1b[2J\u202eabc\x00"
    assert plain("x" * 1000, 10) == "x" * 9 + "…"
    assert plain(b"rows") == "(bytes in place of a text)"
    assert plain(ValueError("no")) == "no"


@given(some.text(some.characters(max_codepoint=0x7F), max_size=20))
def test_ascii_alone_reads_as_beside_other_letters(text: str) -> None:
    assert plain(text) == plain(text + "ü")[:-1]


@pytest.mark.parametrize(
    "text", ["", " a", "a\n", "\u202ea", "a\u3164", "a" * 129, "\x00", 3, None, b"a", []]
)
def test_what_is_no_name(text: object) -> None:
    assert not named(text)
    assert named("films") and named("Größe 3") and named("../../x") and named("a" * 128)
