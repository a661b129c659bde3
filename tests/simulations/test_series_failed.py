"""A comparison in which a run fails, or must not go on: the others have their results."""

import sys
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from fedlora import cli, settings
from fedlora.errors import MethodError
from server.loop import Coordinator
from simulations import series
from tests.federation import World
from tests.simulations.test_series import METHODS, Called, fedlora, quiet, tree

__all__ = ["fedlora"]  # a fixture


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (["fedsa.train.lr=1e30"], "no client's update was used"),  # in its run: Failed
        ([], "the method is wrong"),  # a method's mistake, which only training finds
    ],
)
def test_one_that_fails_keeps_no_other_from_running(
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fedlora: Called,
    asked: list[str],
    words: str,
) -> None:
    """The others have their results, tables and picture, beside which it is said which has none and
    why; the exit code is 1. Resumed, that one alone is tried again."""
    (tmp_path / "small.toml").write_text(tomli_w.dumps(tree(world, tmp_path, "cut")))
    aggregate = Coordinator._aggregate

    def wrong(self: Coordinator, *given: Any) -> None:
        if not asked and self.config.method == "fedsa":
            raise MethodError("the method is wrong")
        aggregate(self, *given)

    monkeypatch.setattr(Coordinator, "_aggregate", wrong)
    folder = tmp_path / "cut"
    new = [str(tmp_path / "small.toml"), *asked, "--strategies", "fedsa,fedsb", "--no-baselines"]
    for given in (new, ["--resume", str(folder)]):
        code, out, err = fedlora(*given)
        assert code == 1 and "Traceback" not in err
        assert "error: no result of fedsa, seed 0: " in err and words in err
        assert f"what was done is kept; go on with: fedlora compare --resume {folder}" in err
        assert ("fedsb, seed 0: 2 rounds" in out) == (given is new)
        assert f"tables: {folder}" in out and (folder / "comparison.png").is_file()
        assert [p.parent.name for p in folder.glob("*/result.json")] == ["fedsb-seed0"]
        said = (folder / "comparison.md").read_text()
        assert "| fedsb |" in said and "no result of fedsa, seed 0: " in said
    if not asked:
        monkeypatch.undo()
        monkeypatch.setattr(sys, "argv", ["fedlora", "compare", "--resume", str(folder)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert end.value.code in (0, None)
        assert "no result" not in (folder / "comparison.md").read_text()


def test_other_rows_are_no_part_of_a_comparison(
    world: World, tmp_path: Path, fedlora: Called
) -> None:
    """Resumed with a method that has not begun, it would be compared with what others learnt."""
    lines = world.data.read_text().splitlines()
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(lines))
    given = settings.merged(tree(world, tmp_path, "one"), {"data": {"name": str(rows)}})
    plan = series.planned(given, {}, ",".join(METHODS), "0", False)
    folder = series.place(plan)
    left = series.contenders(plan, folder)
    series.create(folder, plan)
    series.carry_out(folder, plan, left[:1], quiet, lambda line: None)
    rows.write_text("\n".join(lines[:-1]))
    code, _, err = fedlora("--resume", str(folder))
    assert code == 2 and "rows are others" in err and "start a new comparison" in err
    assert not (folder / "fedsb-seed0").exists()
