"""A run directory: all of a round or nothing of it, and damage that shows."""

import hashlib
import json
import platform

import pytest
import torch

from fedlora.config import Config
from fedlora.errors import UserError
from fedlora.runs import Checkpoint, RunDir, comparison_dir
from tests.federation import same

MEMORY = {"roster": {"members": {"ä": {"index": 0}}, "manifests": {}}}


def config(tmp_path, **run):
    return Config.model_validate({"run": {"dir": str(tmp_path), "name": "mine", **run}})


def checkpoint(number):
    state = {"x.A": torch.full((2, 3), float(number)), "server/n": torch.tensor(float(number))}
    rows = [{"kind": "round", "round": number}, {"kind": "client", "round": number, "client": "ä"}]
    return Checkpoint(number, state, MEMORY, rows)


def committed(run, *numbers, keep="all"):
    for number in numbers:
        with run.aside(number) as aside:
            run.commit(checkpoint(number), aside, keep)
    return run


def metrics(run):
    return [(r["kind"], r["round"]) for r in map(json.loads, run.metrics.read_text().splitlines())]


def both(*numbers):
    return [(kind, n) for n in numbers for kind in ("round", "client")]


def test_a_checkpoint_comes_back_whole(tmp_path):
    """State to the bit, memory and metrics as they were."""
    run = committed(RunDir.create(config(tmp_path)), 0, 1)
    found, wrong = RunDir(run.path).resume()
    assert found.round == 1 and wrong == []
    assert same(found.state, checkpoint(1).state)
    assert (found.memory, found.rows) == (MEMORY, checkpoint(1).rows)


@pytest.mark.parametrize(("keep", "left"), [("latest", [3, 4]), ("all", [0, 1, 2, 3, 4])])
def test_checkpoints_that_are_kept(tmp_path, keep, left):
    """The latest two, or all."""
    run = committed(RunDir.create(config(tmp_path)), *range(5), keep=keep)
    assert run.rounds() == left
    assert metrics(run) == both(*range(5))


def test_a_round_that_raises_leaves_nothing(tmp_path):
    """What was prepared is gone, and the rounds before it are there."""
    run = committed(RunDir.create(config(tmp_path)), 0)
    with pytest.raises(KeyError), run.aside(1) as aside:
        (aside / "sent-a.safetensors").write_bytes(b"x")
        raise KeyError
    assert [p.name for p in run.path.glob("*round-*")] == ["round-0000"]


def test_metrics_go_back_to_the_checkpoint(tmp_path):
    """Later lines go, and one that was cut short; the checkpoint's own are there though they had
    not been written yet."""
    run = committed(RunDir.create(config(tmp_path)), 0, 1, 2)
    lines = run.metrics.read_text().splitlines()
    later = json.dumps({"kind": "round", "round": 3})
    run.metrics.write_text("\n".join([*lines[:-2], later, '{"kind": "round", "failed": {}']))
    run.resume()
    assert metrics(run) == both(0, 1, 2)


def test_metrics_that_are_lost_are_no_obstacle(tmp_path):
    """The last checkpoint's own rows are in it."""
    run = committed(RunDir.create(config(tmp_path)), 0, 1)
    run.metrics.unlink()
    assert run.resume()[0].round == 1
    assert metrics(run) == both(1)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '{"round": 1}'])
def test_a_damaged_checkpoint_is_named(tmp_path, text):
    """Whatever its file holds, the one before it is used."""
    run = committed(RunDir.create(config(tmp_path)), 0, 1)
    (run.round(1) / "checkpoint.json").write_text(text)
    found, wrong = run.last()
    assert found.round == 0
    assert len(wrong) == 1 and "the checkpoint of round 1 is damaged" in wrong[0]


def test_a_damaged_round_can_be_done_again(tmp_path):
    """Its directory is replaced."""
    run = committed(RunDir.create(config(tmp_path)), 0, 1)
    (run.round(1) / "state.safetensors").write_bytes(b"")
    assert run.resume()[0].round == 0
    committed(run, 1)
    assert run.last()[0].round == 1 and metrics(run) == both(0, 1)


def test_a_directory_is_made_once_and_whole(tmp_path):
    """With the configuration and an id of its own; a name that is taken is refused."""
    run = RunDir.create(config(tmp_path))
    assert {p.name for p in run.path.iterdir()} == {"config.toml", "run.json", "metrics.jsonl"}
    with pytest.raises(UserError, match="exists"):
        RunDir.create(config(tmp_path))
    other = RunDir.create(config(tmp_path, name="other"))
    assert other.experiment != run.experiment
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "other"]


def test_a_run_says_what_it_was_made_with(tmp_path):
    """Versions and the machine; a run from before that was kept still opens, and a damaged
    file is named."""
    made = RunDir.create(config(tmp_path)).facts["environment"]
    assert made["torch"] == torch.__version__ and made["python"] == platform.python_version()
    assert {"fedlora", "flwr", "transformers", "peft", "platform", "cpus"} <= made.keys()
    path = tmp_path / "mine" / "run.json"
    path.write_text('{"experiment": "7"}')
    assert RunDir(path.parent).experiment == "7"
    path.write_text('{"experiment"')
    with pytest.raises(UserError, match=r"run\.json is damaged"):
        RunDir(path.parent)


def test_a_run_is_found_by_name_or_path(tmp_path, monkeypatch):
    """And if there is none of that name, those that there are are listed."""
    run = RunDir.create(config(tmp_path))
    assert RunDir.open("mine", str(tmp_path)).experiment == run.experiment
    assert RunDir.open(str(run.path)).experiment == run.experiment
    with pytest.raises(UserError, match=r"no run 'yours' in .*; there are mine"):
        RunDir.open("yours", str(tmp_path))


def test_a_run_without_a_name_is_called_by_its_method(tmp_path):
    """The class of one's own method, without its module."""
    named = config(tmp_path, name="").model_copy(update={"strategy": {"name": "a.b:Mine"}})
    assert RunDir.create(named).path.name.startswith("Mine-")


def test_a_comparison_has_a_folder_of_its_own(tmp_path):
    """Which may not exist either."""
    assert comparison_dir(config(tmp_path)) == tmp_path / "mine"
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match="exists"):
        comparison_dir(config(tmp_path))


def test_the_digest_is_that_of_the_file(tmp_path):
    """Though nobody read it again: whoever has the file can check it with common tools."""
    run = committed(RunDir.create(config(tmp_path)), 0)
    data = (run.round(0) / "state.safetensors").read_bytes()
    facts = json.loads((run.round(0) / "checkpoint.json").read_text())
    assert facts["state"] == hashlib.sha256(data).hexdigest()


def test_a_row_that_is_no_json_is_never_written(tmp_path):
    """Python would write NaN and Infinity, which no other reader knows."""
    run = committed(RunDir.create(config(tmp_path)), 0)
    wrong = Checkpoint(1, {}, MEMORY, [{"kind": "round", "round": 1, "score": float("nan")}])
    with pytest.raises(ValueError, match="JSON"), run.aside(1) as aside:
        run.commit(wrong, aside, "all")
    assert run.rounds() == [0] and metrics(run) == both(0)
