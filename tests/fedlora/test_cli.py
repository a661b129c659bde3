"""The command line: what a run prints and leaves, and mistakes that name themselves."""

import json
import sys

import pytest
import tomli_w

from fedlora import cli


@pytest.fixture
def fedlora(world, tmp_path, monkeypatch, capsys):
    """Runs the command in an empty directory with `small.toml`; (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    tree = world.tree(tmp_path / "runs", {"run.rounds": 2})
    (tmp_path / "small.toml").write_text(tomli_w.dumps(tree))

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["fedlora", *arguments])
        with pytest.raises(SystemExit) as exit:
            cli.main()
        found = capsys.readouterr()
        return exit.value.code, found.out, found.err

    return call


MISTAKES = {
    "unknown key": (["run.rond=3"], "run.rond: no such key; did you mean 'rounds'? (known: rounds"),
    "unknown section": (["rum.rounds=3"], "no section 'rum'; did you mean 'run'? (sections: run"),
    "no section": (["a=b"], "'a=b' is no setting: write section.key=value"),
    "wrong type": (["train.lr=fast"], "train.lr = 'fast': Input should be a valid number"),
    "out of range": (["run.rounds=0"], "run.rounds = 0: Input should be greater than 0"),
    "too large a fraction": (["run.clients_per_round=1.5"], "a whole number, or a fraction in (0"),
    "no choice": (["run.wire=fp8"], "run.wire = 'fp8': Input should be 'fp32', 'fp16' or 'bf16'"),
    "value and table": (["train.lr=1", "train.lr.x=2"], "'train.lr.x': lr was given a value"),
    "unknown method": (["strategy.name=fedx"], "no method 'fedx'; did you mean 'fedex'? (known: "),
    "unknown module": (["strategy.name=nowhere:Mine"], "run where nowhere.py lies"),
    "a name like an emoji": (["strategy.name=nowhere:X"], "for the method nowhere:X: run"),
    "not its setting": (["strategy.sides=[1]"], "strategy.sides: no such key (known: name, trunc"),
    "settings at odds": (["strategy.truncate=1", "strategy.assignment=local"], "strategy: truncat"),
    "no target": (["adapter.target_modules=qury"], "matches no module"),
    "rank above the layer": (["adapter.rank=33"], "33"),
    "rank above the run's": (["strategy.name=fslora", "strategy.ranks=[9]"], "rank 9, above"),
    "missing data": (["data.name=./rows.csv"], "rows.csv"),
    "missing column": (["data.label=lable"], "no column 'lable'"),
    "too many clients": (["data.partition=iid", "data.clients=999"], "999 clients cannot share"),
    "too few clients": (["run.clients_per_round=9"], "9 clients are needed for a round, but 3"),
    "missing model": (["model.name=./nothing"], "no model folder"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_message_and_exit_code_2(fedlora, tmp_path, mistake):
    """On standard error, without a traceback, and nothing is left behind."""
    arguments, words = MISTAKES[mistake]
    code, out, err = fedlora("run", "small.toml", *arguments)
    assert words in err
    assert (code, out) == (2, "")
    assert "Traceback" not in err
    left = [p for p in tmp_path.rglob("*") if p.name not in ("small.toml", "runs")]
    assert left == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[run\nrounds = 3", "bad.toml cannot be read: Expected ']'"),
        ("rounds = 3", "there is no section 'rounds'"),
        ("run = 3", "'run' is a section"),
        ("[run]\nname = 'a/b'", "run.name = 'a/b': String should match pattern"),
    ],
)
def test_a_bad_configuration_file(fedlora, tmp_path, text, words):
    """It names the file, or the key in it."""
    (tmp_path / "bad.toml").write_text(text)
    code, _, err = fedlora("run", "bad.toml")
    assert words in err
    assert code == 2


def test_a_missing_configuration_file(fedlora):
    """Named as it was given."""
    code, _, err = fedlora("run", "nothing.toml")
    assert (code, err) == (2, "error: there is no configuration file nothing.toml\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["compare", "small.toml", "--strategies", "fedit,fedx"], "no method 'fedx'"),
        (["compare", "small.toml", "fedsbb.adapter.rank=2"], "no section 'fedsbb'"),
        (["compare", "small.toml", "ffa.adapter.rnk=2"], "adapter.rnk: no such key"),
        (["run", "--resume", "nothing"], "there is no run 'nothing' in runs/"),
        (["cost", "strategy.name=fedx"], "no method 'fedx'"),
        (["export", "nothing", "out"], "there is no run 'nothing'"),
    ],
)
def test_mistakes_of_the_other_commands(fedlora, tmp_path, arguments, words):
    """Every mistake is found before anything trains."""
    code, _, err = fedlora(*arguments)
    assert words in err
    assert code == 2
    assert [p.name for p in tmp_path.rglob("*")] == ["small.toml"]


def test_a_run_and_what_follows_it(fedlora, tmp_path):
    """It closes with the table and says where things are, on lines that can be copied; it is not
    run over, goes on with more rounds but no other settings, and is exported."""
    code, out, _ = fedlora("run", "small.toml", "strategy.name=fedsa")
    assert code == 0
    run = tmp_path / "runs" / "run"
    for name in ("adapter", "curves.png", "metrics.jsonl"):
        assert (run / name).exists() and f"{run / name}\n" in out
    assert {"config.toml", "log.txt", "round-0002"} <= {p.name for p in run.iterdir()}

    code, _, err = fedlora("run", "small.toml", "strategy.name=fedsa")
    assert code == 2 and "run exists: choose another run.name" in err

    before = (run / "metrics.jsonl").read_text()
    code, _, err = fedlora("run", "--resume", str(run), "train.lr=1.0")
    assert code == 2 and "a resumed run keeps its configuration" in err
    assert (run / "metrics.jsonl").read_text() == before

    code, out, _ = fedlora("run", "--resume", str(run), "run.rounds=3")
    assert code == 0
    rows = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    assert [r["round"] for r in rows if r["kind"] == "round"] == [0, 1, 2, 3]
    assert "rounds = 3" in (run / "config.toml").read_text()

    code, _, err = fedlora("export", str(run), "mine", "--client", "nobody")
    assert code == 2 and "no client 'nobody' (clients: books, films, shops)" in err
    code, out, _ = fedlora("export", str(run), "mine", "--client", "books")
    assert code == 0 and (tmp_path / "mine" / "adapter_config.json").exists()
    code, _, err = fedlora("export", str(run), "mine")
    assert code == 2 and "mine" in err


def test_a_profiled_run_says_where_its_time_went(fedlora, tmp_path):
    """In a table after the run's own, and in its directory; no other run has that file."""
    code, out, _ = fedlora("run", "small.toml", "--profile")
    path = tmp_path / "runs" / "run" / "profile.json"
    assert code == 0 and f"profile: {path}\n" in out
    assert "forward and backward" in out and "checkpoint" in out
    found = json.loads(path.read_text())
    rounds = found["processes"]["server"].values()
    assert sum(x for r in rounds for x in r.values()) == pytest.approx(found["seconds"])
    assert {"0", "1", "2", "end"} == set(found["processes"]["server"])
    fedlora("run", "small.toml", "run.name=plain")
    assert not (tmp_path / "runs" / "plain" / "profile.json").exists()


def test_a_stopped_run_says_how_to_go_on(fedlora, monkeypatch):
    """Exit code 130, as shells expect it."""
    from server.loop import Coordinator

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Coordinator, "_round", stop)
    code, _, err = fedlora("run", "small.toml")
    assert code == 130 and "--resume" in err and "Traceback" not in err


def test_methods_are_listed(fedlora):
    """Each with what it trains, sends and keeps."""
    code, out, _ = fedlora("strategies")
    assert code == 0
    for name in ("fedit", "ffa", "fedex", "fedsa", "fedsb", "fslora", "local"):
        assert name in out
