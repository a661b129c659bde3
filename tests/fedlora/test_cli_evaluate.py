"""`fedlora evaluate` and `chat` on a classifier, and what they are given wrongly."""

import json
import sys
from pathlib import Path

import pytest
import tomli_w

from fedlora import cli
from tests.federation import World


@pytest.fixture
def fedlora(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    """Runs the command beside a finished run called `run`; (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.toml").write_text(tomli_w.dumps(world.tree(tmp_path / "runs", {})))

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fedlora", *arguments])
        with pytest.raises(SystemExit) as exit:
            cli.main()
        found = capsys.readouterr()
        return int(exit.value.code or 0), found.out, found.err

    assert call("run", "small.toml", "run.rounds=1")[0] == 0
    return call


def test_scores_are_the_run_s_own(fedlora, world: World, tmp_path: Path) -> None:
    """On its test rows those of its last round; on a file those of every row, by the run's labels,
    whatever their order there; a person's mistakes are one message and exit code 2."""
    code, out, err = fedlora("evaluate", "run", "--json")
    assert code == 0, err
    found = json.loads(out)
    rows = [json.loads(x) for x in (tmp_path / "runs/run/metrics.jsonl").read_text().splitlines()]
    (last,) = [r for r in rows if r["kind"] == "round" and r["round"] == 1]
    assert found["score"] == pytest.approx(last["score"])
    assert found["loss"] == pytest.approx(last["test_loss"], rel=1e-5)
    assert "perplexity" not in found

    train = world.data / "train.jsonl" if world.data.is_dir() else world.data
    lines = [x for x in train.read_text().splitlines() if x][:5]
    (tmp_path / "few.jsonl").write_text("\n".join(reversed(lines)) + "\n")
    code, out, err = fedlora("evaluate", "run", "--data", "few.jsonl")
    assert code == 0 and "5" in out, err

    mistakes = {
        ("evaluate", "nobody"): "no run 'nobody'",
        ("evaluate", "run", "--client", "nobody"): "no client 'nobody' (clients: books",
        ("evaluate", "run", "--data", "./none.csv"): "none.csv",
        ("evaluate", "run", "adapter.rank=3"): "only settings of data and generate",
        ("evaluate", "run", "generate.rows=2"): "model.task = classification gives none",
        ("chat", "run"): "does not talk",
    }
    for arguments, words in mistakes.items():
        code, _, err = fedlora(*arguments)
        assert code == 2 and words in err and "Traceback" not in err, arguments
