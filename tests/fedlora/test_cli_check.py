"""`fedlora check`, and what `fedlora node check` has of it: everything before anything trains."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from typer.testing import CliRunner, Result

from fedlora.cli import app
from fedlora.cli.check import NODE, PARTS
from tests.federation import World
from tests.fedlora.tasks.talk import rows, save


@pytest.fixture(autouse=True)
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def checked(tree: Any, *more: str) -> Result:
    path = Path("../run.toml")
    path.write_text(tomli_w.dumps(tree))
    return CliRunner().invoke(app, ["check", str(path), *more])


def test_all_parts_are_shown_and_nothing_is_left(world: World, tmp_path: Path) -> None:
    """Columns, labels by client, rows with their label, lengths, model, bytes, a step."""
    done = checked(world.tree(tmp_path, {}))
    assert done.exit_code == 0, done.output
    assert all(f"\n{heading}\n" in done.output for heading in PARTS)
    lines = [line.split() for line in done.output.splitlines()]
    assert ["books", "66", "7", "33", "33"] in lines
    assert ["domain", "text", "3", "client", "books"] in lines
    assert "[SEP] → ⟦good⟧" in done.output
    assert "longer than 16 tokens, and cut: 0 of 155 rows" in done.output
    assert not list(Path().iterdir())


def test_a_conversation_is_shown_with_its_answer_marked(tmp_path: Path) -> None:
    """By its template."""
    model, data = save(tmp_path / "model"), rows(tmp_path / "rows.jsonl")
    tree = {
        "model": {"name": str(model), "task": "instruction"},
        "data": {"name": str(data)},
        "adapter": {"rank": 2},
    }
    done = checked(tree)
    assert done.exit_code == 0, done.output
    assert "<| assistant |>⟦ it is " in done.output and "</s>⟧" in done.output


def test_what_a_run_would_note_is_noted(world: World, tmp_path: Path) -> None:
    """Labels that differ by case alone, rows that are cut; and nothing where nothing is odd."""
    rows = [json.loads(line) for line in world.data.read_text().splitlines()]
    data = tmp_path / "odd.jsonl"
    odd = [
        {**r, "label": r["label"].title() if i % 9 == 0 else r["label"]} for i, r in enumerate(rows)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in odd))
    done = checked(world.tree(tmp_path, {"data.name": str(data), "data.max_length": 6}))
    _, _, said = done.output.partition("What looks odd")
    assert "Bad" in said and "lose their ends" in said
    done = checked(world.tree(tmp_path, {}))
    assert done.output.rstrip().endswith("What looks odd\nnothing")


@pytest.mark.parametrize(
    ("given", "words", "still"),
    [
        ("data.label=lable", "no column 'lable'", "used as"),
        ("model.name=./nothing", "no model folder", "together"),
        ("adapter.target_modules=nothing", "matches no module", "cut: 0 of 155"),
    ],
)
def test_what_is_wrong_is_said_once_and_the_rest_is_shown(
    world: World, tmp_path: Path, given: str, words: str, still: str
) -> None:
    """The exit code is 2."""
    done = checked(world.tree(tmp_path, {}), given)
    assert done.exit_code == 2, done.output
    assert done.output.count(words) == 1 and still in done.output
    assert "Traceback" not in done.output


def test_rows_steer_no_terminal(world: World, tmp_path: Path) -> None:
    """Neither by escapes nor by markup."""
    rows = [
        {"text": f"\x1b[2J[red] {i} filler1", "label": i % 2, "domain": "[b]a"} for i in range(40)
    ]
    data = tmp_path / "evil.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = checked(world.tree(tmp_path, {"data.name": str(data)}))
    assert done.exit_code == 0, done.output
    assert "\x1b[2J" not in done.output
    assert done.output.count("[b]a") == 3 and "[red] 0" in done.output


def test_a_ready_node_shows_what_it_has_and_rows_only_when_asked(
    world: World, tmp_path: Path
) -> None:
    """Columns, lengths, model and needs; not a word of a row without --rows; no column is a
    client's, as all rows are one owner's."""
    lines = [x for x in world.data.read_text().splitlines() if '"books"' in x]
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(lines).replace("filler1 ", "secret "))
    tree = world.tree(tmp_path, {})
    (tmp_path / "run.toml").write_text(tomli_w.dumps(tree))
    given = f'client="books" data="{rows}" model="{world.model}" state-dir="{tmp_path / "state"}"'
    words = ["node", "check", str(tmp_path / "run.toml"), f"--node-config={given}"]
    before = os.umask(0o077)
    try:
        silent, shown = (CliRunner().invoke(app, [*words, *more]) for more in ([], ["--rows"]))
    finally:
        os.umask(before)
    assert silent.exit_code == shown.exit_code == 0, silent.output
    assert all(f"\n{part}\n" in silent.output for part in NODE)
    assert "secret" not in silent.output and "[CLS]" not in silent.output
    assert "[CLS]" in shown.output and "⟦" in shown.output
    (domain,) = [line.split() for line in silent.output.splitlines() if "domain" in line]
    assert domain == ["domain", "text", "1", "–"]
