"""Runs are found and read, and what is wrong with them is said."""

import json
from pathlib import Path

import pytest

from fedlora.errors import UserError
from fedlora.page.collect import find, read
from tests.fedlora.page.made import directory, made, scored
from tests.fedlora.rows import ROWS


def names(found: tuple[list, Path | None]) -> list[str]:
    return [run.path.name for run in found[0]]


def test_runs_by_name_by_path_and_by_folder(tmp_path, monkeypatch):
    """All mixed, each once, in the order given; a folder's own by name."""
    for name in ("b", "a"):
        directory(tmp_path / "runs" / "both", name, ROWS)
    directory(tmp_path / "runs", "alone", ROWS)
    monkeypatch.chdir(tmp_path)
    assert names(find(["alone", "both", "runs/both/b"])) == ["alone", "a", "b"]
    assert names(find(["runs/both/b", "runs/both"])) == ["b", "a"]


def test_a_single_directory_is_where_the_page_goes(tmp_path):
    """That of the run, or the folder; several have none in common."""
    for name in ("a", "b"):
        directory(tmp_path / "both", name, ROWS)
    one, both = str(tmp_path / "both" / "a"), str(tmp_path / "both")
    assert find([one])[1] == Path(one)
    assert find([both])[1] == Path(both)
    assert find([one, both])[1] is None


def test_what_is_no_run(tmp_path, monkeypatch):
    """Nothing there, a folder without runs."""
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in ("nothing", "empty"):
        with pytest.raises(UserError, match=f"there is no run '{name}'"):
            find([name])


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("run.json", "{", r"run\.json is damaged"),
        ("run.json", "[]", r"run\.json is damaged"),
        ("run.json", "{}", r"run\.json is damaged"),
        ("config.toml", "[run", r"config\.toml cannot be read"),
        (
            "metrics.jsonl",
            '{"kind": "rou',
            r"metrics\.jsonl, line 1 .* is not JSON.*: remove the line",
        ),
        ("metrics.jsonl", '{"kind": "round"}', r"metrics\.jsonl, line 1 .*round: Field req"),
        ("metrics.jsonl", "3", r"metrics\.jsonl, line 1 is damaged"),
        (
            "answers.jsonl",
            '{"round": 0, "row": 1}',
            r"answers\.jsonl, line 1 .*prompt: Field req",
        ),
    ],
)
def test_a_damaged_file_is_named(tmp_path, file, text, words):
    """With what to do about it."""
    run = directory(tmp_path, "mine", ROWS)
    (run.path / file).write_text(text)
    with pytest.raises(UserError, match=words):
        read(find([str(run.path)])[0][0])


def test_a_missing_file_is_named(tmp_path):
    """A run without its metrics or its configuration is none."""
    run = directory(tmp_path, "mine", ROWS)
    run.metrics.unlink()
    with pytest.raises(UserError, match=r"metrics\.jsonl does not exist"):
        read(run)
    directory(tmp_path, "other", ROWS)
    (tmp_path / "other" / "config.toml").unlink()
    with pytest.raises(UserError, match=r"no configuration file .*other"):
        read(find([str(tmp_path / "other")])[0][0])


def test_what_is_read(tmp_path):
    """Settings by dotted key, nulls as such, rows by kind, the environment; nothing of it where
    the run is from before that was kept."""
    run = directory(tmp_path, "mine", ROWS, {"train.lr": 0.25})
    found = read(run)
    assert found.config["train.lr"] == 0.25 and found.config["privacy.epsilon"] is None
    assert [r["round"] for r in found.rounds] == [0, 1, 2] and found.last == 2
    assert [r["client"] for r in found.clients] == ["a", "b"]
    assert found.answers == [] and found.environment["fedlora"]
    old = {"experiment": "0", "version": "0.0.1"}
    (run.path / "run.json").write_text(json.dumps(old))
    assert read(find([str(run.path)])[0][0]).environment == {}


def test_a_baseline_sends_nothing(tmp_path):
    """Only its simulation has a server; one client with everyone's rows is named for it."""
    pooled = made(tmp_path, "a", scored(0.5, 0.6), data__pooled=True)
    local = made(tmp_path, "b", scored(0.5, 0.6), strategy__name="local")
    fedit = made(tmp_path, "c", scored(0.5, 0.6))
    assert [r.method for r in (pooled, local, fedit)] == ["centralised", "local", "fedit"]
    assert [sum(r["bytes_up"] for r in x.rounds) for x in (pooled, local, fedit)] == [0, 0, 10**6]


def test_what_is_not_known_has_no_value(tmp_path):
    """Nulls and NaN are nothing to draw."""
    run = made(tmp_path, "a", scored(None, 0.5, float("nan")))
    assert run.values("score") == {1: 0.5} and run.values("nothing") == {}
