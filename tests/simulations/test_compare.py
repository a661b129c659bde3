"""A comparison: who gets which settings, and what the baselines are."""

import csv
import json
import sys
from pathlib import Path

import pytest

from fedlora import cli, settings
from fedlora.errors import UserError
from simulations import compare
from tests.federation import World
from tests.fedlora.rows import round_row

FOUR = dict.fromkeys("abcd", 90)


def test_a_setting_is_for_all_or_for_one_method() -> None:
    """`fedsb.adapter.rank` reaches Fed-SB alone and wins over `adapter.rank`, which reaches all;
    the method's own defaults stay below both."""
    overrides = settings.parse(["adapter.rank=4", "fedsb.adapter.rank=6", "ffa.train.lr=0.5"])
    trees = compare.split({}, overrides, ("fedit", "ffa", "fedsb"))
    found = {m: compare.resolved(m, trees[m], "x", FOUR)[0] for m in trees}
    assert [c.adapter.rank for c in found.values()] == [4, 4, 6]
    assert [c.train.lr for c in found.values()] == [1e-3, 0.5, 5e-3]


def test_centralised_takes_everyones_steps_over_everyones_rows() -> None:
    """The centralised baseline is one client with the pooled rows and as many steps as all sampled
    clients together."""
    tree = {"run": {"clients_per_round": 0.5}, "train": {"steps": 7}}
    config, strategy = compare.resolved("centralised", tree, "x", dict.fromkeys("abcdef", 90))
    assert config.data.pooled and config.run.clients_per_round == 1
    assert config.train.steps == 3 * 7
    assert type(strategy).__name__ == "FedIT"


def test_a_client_that_cannot_train_privately_is_found_before_anything_trains() -> None:
    """A batch larger than a client's rows is no batch of private training: the client is named."""
    tree = {"privacy": {"epsilon": 3.0}}
    assert compare.resolved("fedit", tree, "x", FOUR)[0].privacy.local
    with pytest.raises(UserError, match=r"client small: train\.batch_size = 16 is more than its 9"):
        compare.resolved("fedit", tree, "x", {**FOUR, "small": 9})


def test_a_result_has_what_the_run_spent() -> None:
    """ε is the last round's, as it covers the whole run; null or absent stays unknown."""
    config, strategy = compare.resolved("fedit", {}, "x", FOUR)
    rows = [round_row(0, epsilon=0.0), round_row(1, epsilon=1.5), round_row(2, epsilon=2.0)]
    assert compare.result("fedit", rows, config, strategy).epsilon == 2.0
    rows[-1]["epsilon"] = None
    assert compare.result("fedit", rows, config, strategy).epsilon is None
    found = compare.result("fedit", [round_row(0), round_row(1)], config, strategy)
    assert found.epsilon is None and found.bytes_up == 2 * 1_230_000


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
    assert "centralised" in capsys.readouterr().out
