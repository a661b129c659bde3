"""Configuration: who wins, what a null means, and that every way of writing it reads the same."""

from pathlib import Path

import pytest

import strategies
from fedlora import settings
from fedlora.config import Config
from fedlora.errors import UserError
from fedlora.strategy import Strategy


def resolve(*overrides, path=None, load=strategies.load):
    return settings.resolve(settings.read(path, overrides), load)


@pytest.mark.parametrize(
    ("method", "toml", "override", "expected"),
    [
        ("fedit", None, None, 1e-3),  # the field's default
        ("ffa", None, None, 1e-2),  # the method's own
        ("ffa", 2e-2, None, 2e-2),  # the file
        ("ffa", 2e-2, 3e-2, 3e-2),  # key=value
        ("ffa", 2e-2, "null", 1e-2),  # null is the default again, for it cannot be a rate
        ("ffa", "null", None, 1e-2),
        ("fedit", "null", None, 1e-3),
    ],
)
def test_the_later_one_wins(tmp_path, method, toml, override, expected):
    """Defaults, the method's documented defaults, the TOML file, key=value."""
    path = tmp_path / "c.toml"
    value = f"'{toml}'" if isinstance(toml, str) else toml
    path.write_text("" if toml is None else f"[train]\nlr = {value}\n")
    given = [f"strategy.name={method}"] + ([] if override is None else [f"train.lr={override}"])
    config, _ = resolve(*given, path=path)
    assert config.train.lr == expected


def test_a_null_where_it_means_something_stays_null():
    """train.steps = null is epochs, also over a method that brings steps of its own."""

    class Brief(Strategy):
        defaults = {"train.steps": 3}

    assert resolve(load=lambda name: Brief)[0].train.steps == 3
    assert resolve("train.steps=null", load=lambda name: Brief)[0].train.steps is None


def test_a_null_in_the_methods_table_too():
    """For its name and for settings that cannot be null."""
    assert resolve("strategy.name=null")[0].method == "fedex"
    assert resolve("strategy.assignment=null")[1].assignment == "average"
    assert resolve("strategy.truncate=null")[1].truncate is None


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["strategy.name=fslora", "strategy.ranks=[1, 2, 4]", "run.clients_per_round=1.0"],
        ["strategy.name=fslora", 'strategy.ranks={"1": 1.5, "8": 2}', "run.clients_per_round=3"],
        ["strategy.name=fedex", "strategy.truncate=3", "train.clip=null", "train.steps=null"],
        ['adapter.target_modules=["query", "value"]', "data.rows=5"],
        ["adapter.target_modules=all-linear", "run.norm_bound=2"],
        ['run.name="2024"', 'data.by="1e5"', 'data.label="true"', 'data.text="[1, 2]"'],
        ['data.name="a=b c"', 'data.text=""'],
    ],
)
def test_there_and_back(tmp_path, overrides):
    """Flower's flat run-config and the file in a run's directory read back to the same, lists,
    nulls and texts that look like numbers included."""
    config, method = resolve(*overrides)
    flat = settings.to_flat(config)
    assert all(isinstance(v, bool | int | float | str) for v in flat.values())
    assert settings.resolve(settings.from_flat(flat), strategies.load) == (config, method)
    settings.write(config, tmp_path / "config.toml")
    assert resolve(path=tmp_path / "config.toml") == (config, method)
    assert [p.name for p in tmp_path.iterdir()] == ["config.toml"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3), ("-1.5e-3", -1.5e-3), ("true", True), ("null", None), ("[1, 2]", [1, 2]),
        ('["a", null]', ["a", None]), ('"3"', "3"), ("all-linear", "all-linear"), ("", ""),
        ("2024-01-02", "2024-01-02"), ("a=b", "a=b"), ("[1", "[1"), ("x\ny = 1", "x\ny = 1"),
    ],
)  # fmt: skip
def test_values_are_read_as_written(text, value):
    """A number, truth value, list or null where the text is one; else the text."""
    (found,) = settings.parse([f"data.text={text}"])["data"].values()
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("overrides", "lines"),
    [
        (["run.rounds=0", "train.lr=x"], ["run.rounds = 0: ", "train.lr = 'x': "]),
        (["strategy.name=fslora", "strategy.ranks=[1, 0]"], ["strategy.ranks = 0: "]),
        (["simulation.workers=-1"], ["simulation.workers = -1: "]),
        (["strategy.trunkate=1"], ["strategy.trunkate: no such key; did you mean 'truncate'?"]),
        (["adapter.target_modules=3.5"], []),
    ],
)
def test_every_mistake_is_named_by_its_key(overrides, lines):
    """All of them at once, each on a line of its own, in the user's words."""
    if not lines:
        resolve(*overrides)
        return
    with pytest.raises(UserError) as found:
        resolve(*overrides)
    for line in lines:
        assert f"\n  {line}" in str(found.value)
    assert "Value error" not in str(found.value)


def test_settings_of_other_methods_are_passed_over_where_one_table_serves_many():
    """But not unknown ones."""
    tree = {"strategy": {"name": "ffa", "ranks": [1], "init": "xs"}}
    config, _ = settings.resolve(tree, strategies.load, ignore=strategies.settings())
    assert config.strategy == {"name": "ffa"}
    with pytest.raises(UserError, match=r"strategy.nothing: no such key"):
        settings.resolve(
            {"strategy": {"nothing": 1}}, strategies.load, ignore=strategies.settings()
        )


def test_the_adapter_is_the_one_that_the_method_is_defined_on():
    """Unless it is said otherwise."""
    assert resolve("strategy.name=fedsb")[0].adapter.kind == "lora-sb"
    assert resolve("strategy.name=fedsa")[0].adapter.kind == "lora"
    assert resolve("strategy.name=fedsa", "adapter.kind=vera")[0].adapter.kind == "vera"


@pytest.mark.parametrize(
    ("share", "present", "count"),
    [(1.0, 5, 5), (0.5, 5, 3), (0.5, 4, 2), (0.1, 4, 1), (3, 5, 3), (9, 5, 5), (0.3, 10, 3)],
)
def test_clients_of_a_round(share, present, count):
    """A number of those present, or a fraction with halves rounded up and at least one."""
    run = Config.model_validate({"run": {"clients_per_round": share}}).run
    assert run.sampled(present) == count


def test_a_template_s_file_is_read_where_a_person_names_it(tmp_path: Path) -> None:
    """On the command line and in a file of settings; nowhere else, so that a run cannot have a node
    open its files."""
    (tmp_path / "chat.jinja").write_text("{{ messages }}", "utf-8")
    named = f"model.chat_template={tmp_path / 'chat.jinja'}"
    config, _ = settings.resolve(settings.read(None, [named]), strategies.load)
    assert config.model.chat_template == "{{ messages }}"
    with pytest.raises(UserError, match=r"model\.chat_template = .*no Jinja"):
        settings.resolve(settings.from_flat(dict([named.split("=")])), strategies.load)
