"""SECURITY.md is a table of promises: each has a test that is there, or says that it has none."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINES = [
    [cell.strip() for cell in line.strip("|\n").split(" | ")]
    for line in (ROOT / "SECURITY.md").read_text("utf-8").splitlines()
    if line.startswith("| ") and not line.startswith(("| **", "| |", "| promise"))
]


def test_there_are_promises():
    """The tables are read as they are written."""
    assert len(LINES) > 30 and {len(line) for line in LINES} == {2}


@pytest.mark.parametrize(("promise", "tests"), LINES, ids=[line[0][:60] for line in LINES])
def test_a_promise_names_tests_that_are_there(promise: str, tests: str) -> None:
    """Files below tests/ with tests in them, or the words "no test"."""
    if tests == "no test":
        return
    for name in tests.split(", "):
        path = ROOT / "tests" / name
        assert path.is_file() and "\ndef test_" in path.read_text("utf-8"), name


def test_every_hostile_test_holds_a_promise():
    """No attack is played without a promise that it could break."""
    named = " ".join(tests for _, tests in LINES)
    played = {p.name for p in (ROOT / "tests/hostile").glob("test_*.py")}
    assert {name for name in played if f"hostile/{name}" not in named} == set()
