"""Exact match, ROUGE-L and F1 against their definitions written out."""

import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlora.likeness import likeness

WORDS = st.lists(st.sampled_from(["red", "Red", "blue", "a", "the", "an,", "x."]), max_size=6)


def normal(text: str) -> list[str]:
    """SQuAD's: no case, no punctuation, no articles."""
    plain = "".join(c for c in text.lower() if c.isalnum() or c.isspace())
    return [w for w in plain.split() if w not in ("a", "an", "the")]


def f1(said: list[str], true: list[str]) -> float:
    if not said or not true:
        return float(said == true)
    common = sum((Counter(said) & Counter(true)).values())
    return 2 * common / (len(said) + len(true))


def longest(one: list[str], other: list[str]) -> int:
    if not one or not other:
        return 0
    if one[-1] == other[-1]:
        return 1 + longest(one[:-1], other[:-1])
    return max(longest(one[:-1], other), longest(one, other[:-1]))


def rouge(said: str, true: str) -> float:
    one, other = (re.findall(r"\w+", t.lower()) for t in (said, true))
    common = longest(one, other)
    return 2 * common / (len(one) + len(other)) if common else 0.0


@settings(max_examples=40)
@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=3))
def test_they_are_what_their_papers_say(pairs: list[tuple[list[str], list[str]]]) -> None:
    """Means over rows of SQuAD's exact match and token F1, and of ROUGE-L's F-measure."""
    said, true = ([" ".join(pair[i]) for pair in pairs] for i in (0, 1))
    both = list(zip(said, true, strict=True))
    found = likeness(said, true)
    exact = [float(normal(a) == normal(b)) for a, b in both]
    assert found["exact_match"] == pytest.approx(sum(exact) / len(both), abs=1e-6)
    assert found["f1"] == pytest.approx(
        sum(f1(normal(a), normal(b)) for a, b in both) / len(both), abs=1e-6
    )
    assert found["rouge_l"] == pytest.approx(
        sum(rouge(a, b) for a, b in both) / len(both), abs=1e-6
    )


def test_other_scripts_are_words_too() -> None:
    """ROUGE-L's usual tokens are ASCII's alone."""
    assert likeness(["красный дом"], ["красный дом"])["rouge_l"] == pytest.approx(1.0)
