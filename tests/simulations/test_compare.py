"""A comparison: who gets which settings, and what the baselines are."""

import csv
import json
import math
import sys
from pathlib import Path

import pytest

from fedlora import cli, settings
from fedlora.errors import UserError
from simulations import compare, series
from tests.federation import World
from tests.fedlora.rows import round_row

FOUR = dict.fromkeys("abcd", 90)


def test_a_setting_is_for_all_or_for_one_method() -> None:
    """`fedsb.adapter.rank` reaches Fed-SB alone and wins over `adapter.rank`, which reaches all;
    the method's own defaults stay below both."""
    overrides = settings.parse(["adapter.rank=4", "fedsb.adapter.rank=6", "ffa.train.lr=0.5"])
    plan = series.planned({}, overrides, "fedit,ffa,fedsb", None, False)
    found = [compare.resolved(m, plan.tree(m), 0, "x", FOUR)[0] for m in plan.methods]
    assert [c.adapter.rank for c in found] == [4, 4, 6]
    assert [c.train.lr for c in found] == [1e-3, 0.5, 5e-3]


def test_a_run_has_its_seed_and_a_directory_of_its_own() -> None:
    """Whatever run.seed says; a method of one's own is named without what no file name has."""
    config, _ = compare.resolved("fedit", {"run": {"seed": 9, "name": "mine"}}, 2, "x", FOUR)
    assert (config.run.seed, config.run.dir, config.run.name) == (2, "x", "fedit-seed2")
    assert compare.directory("my_mod:Damped_1", 0) == "my_mod.Damped_1-seed0"


def test_centralised_takes_everyones_steps_over_everyones_rows() -> None:
    """The centralised baseline is one client with the pooled rows and as many steps as all sampled
    clients together."""
    tree = {"run": {"clients_per_round": 0.5}, "train": {"steps": 7}}
    six = dict.fromkeys("abcdef", 90)
    config, strategy = compare.resolved("centralised", tree, 1, "x", six)
    assert config.data.pooled and config.run.clients_per_round == 1
    assert config.train.steps == 3 * 7
    assert config.run.name == "centralised-seed1" and config.run.seed == 1
    assert type(strategy).__name__ == "FedIT"


def test_a_client_that_cannot_train_privately_is_found_before_anything_trains() -> None:
    """A batch larger than a client's rows is no batch of private training: the client is named."""
    tree = {"privacy": {"epsilon": 3.0}}
    assert compare.resolved("fedit", tree, 0, "x", FOUR)[0].privacy.local
    with pytest.raises(UserError, match=r"client small: train\.batch_size = 16 is more than its 9"):
        compare.resolved("fedit", tree, 0, "x", {**FOUR, "small": 9})


def test_a_result_has_what_the_run_spent() -> None:
    """ε is the last round's, as it covers the whole run; null is no bound, absent is not private.
    Loss is the last round's too, of which a language model has a perplexity."""
    config, _ = compare.resolved("fedit", {}, 3, "x", FOUR)
    rows = [round_row(0, epsilon=0.0), round_row(1, epsilon=1.5), round_row(2, epsilon=2.0)]
    found = compare.result("fedit", rows, config, 7)
    assert (found.epsilon, found.seed, found.trained_parameters) == (2.0, 3, 7)
    rows[-1]["epsilon"] = None
    assert compare.result("fedit", rows, config, 7).epsilon == math.inf
    found = compare.result("fedit", [round_row(0), round_row(1, test_loss=0.5)], config, 7)
    assert found.epsilon is None and found.bytes_up == 2 * 1_230_000
    assert found.test_loss == 0.5 and found.perplexity is None
    speaks = config.model_copy(
        update={"model": config.model.model_copy(update={"task": "instruction"})}
    )
    found = compare.result("fedit", [round_row(1, test_loss=0.5)], speaks, 7)
    assert found.perplexity == pytest.approx(1.6487212707)


def test_compare_prints_methods_beside_baselines(
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The command runs each method from the same data into a folder of its own, and prints and
    keeps one line a method; baselines send nothing."""
    tree = world.tree(tmp_path, {"run.rounds": 1, "run.name": "both", "simulation.workers": 0})
    flat = [
        f"{section}.{key}={json.dumps(value) if isinstance(value, list) else value}"
        for section, table in tree.items()
        for key, value in table.items()
    ]
    monkeypatch.setattr(sys, "argv", ["fedlora", "compare", *flat, "--strategies", "fedsa,fedsb"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    with (tmp_path / "both/comparison.csv").open() as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["fedsa", "fedsb", "centralised", "local"]
    assert int(rows["fedsb"]["bytes_up"]) < int(rows["fedsa"]["bytes_up"])
    assert rows["local"]["bytes_up"] == rows["centralised"]["bytes_up"] == "0"
    assert (tmp_path / "both/comparison.png").is_file()
    assert (tmp_path / "both/fedsa-seed0/run.json").is_file()
    shown = capsys.readouterr().out
    assert "centralised" in shown and "one seed: no deviation and no test" in shown
