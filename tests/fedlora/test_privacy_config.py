"""The [privacy] section: what is refused by its key, and that it survives every way of writing."""

import pytest

import strategies
from fedlora import settings
from fedlora.errors import UserError


def resolve(*overrides, path=None):
    return settings.resolve(settings.read(path, overrides), strategies.load)


@pytest.mark.parametrize(
    "setting",
    [
        *(f"epsilon={x}" for x in ("0", "-1", "inf", "nan", "-inf", "abc")),
        *(f"delta={x}" for x in ("0", "1", "-0.1", "1.5", "nan", "inf")),
        *(f"noise_multiplier={x}" for x in ("0", "-1", "inf", "nan")),
        *(f"clip={x}" for x in ("0", "-1", "inf", "nan", "null_")),
        *(f"physical_batch={x}" for x in ("0", "1.5")),
        *("mode=both", "accountant=gdp", "engine=ghost", "insecure_seed=-1", "statistics=3"),
    ],
)
def test_a_value_that_means_nothing_is_refused_by_its_key(setting):
    """Above all those that would make noise vanish: ε without bound, σ of zero, δ of one."""
    budget = [] if setting.startswith("epsilon") else ["privacy.epsilon=3"]
    with pytest.raises(UserError, match=f"\n  privacy.{setting.partition('=')[0]} = "):
        resolve(*budget, f"privacy.{setting}")


@pytest.mark.parametrize(
    ("setting", "key"),
    [
        ("delta=1e-5", "delta"),
        ("mode=central", "mode"),
        ("clip=0.5", "clip"),
        ("accountant=prv", "accountant"),
        ("engine=hooks", "engine"),
        ("physical_batch=8", "physical_batch"),
        ("statistics=false", "statistics"),
        ("insecure_seed=0", "insecure_seed"),
    ],
)
def test_a_key_without_a_budget_is_refused(setting, key):
    """Who sets one believes to be protected: the message says what is missing."""
    with pytest.raises(UserError, match=f"privacy: {key} without a budget .*privacy.epsilon"):
        resolve(f"privacy.{setting}")
    for budget in ("epsilon=3", "noise_multiplier=1"):
        private = f"privacy.{budget}", f"privacy.{setting}", "strategy.name=fedit"
        assert resolve(*private)[0].privacy.on


def test_off_until_a_budget_is_given():
    """Nothing is private by default, and defaults written out change nothing."""
    privacy = resolve("privacy.mode=local", "privacy.clip=1.0", "privacy.epsilon=null")[0].privacy
    assert not (privacy.on or privacy.local or privacy.central)
    local, central = (
        resolve("privacy.epsilon=1", f"privacy.mode={mode}", "strategy.name=fedit")[0].privacy
        for mode in ("local", "central")
    )
    assert (local.on, local.local, local.central) == (True, True, False)
    assert (central.on, central.local, central.central) == (True, False, True)


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["privacy.epsilon=0.1"],
        ["privacy.noise_multiplier=0.7", "privacy.delta=1e-6", "privacy.statistics=false"],
        ["privacy.epsilon=8", "privacy.mode=central", "strategy.name=ffa", "privacy.clip=0.25"],
        ["privacy.epsilon=3", "privacy.engine=hooks", "privacy.insecure_seed=0"],
        ["privacy.epsilon=3", "privacy.accountant=prv", "privacy.physical_batch=4"],
    ],
)
def test_there_and_back(tmp_path, overrides):
    """Flower's flat run-config, in which what is not set is the string "null", and a run's file
    read back to the same section: a budget is neither lost nor found on the way."""
    config, method = resolve(*overrides)
    flat = settings.to_flat(config)
    assert flat["privacy.delta"] == "null" or config.privacy.delta
    assert settings.resolve(settings.from_flat(flat), strategies.load) == (config, method)
    settings.write(config, tmp_path / "config.toml")
    assert resolve(path=tmp_path / "config.toml") == (config, method)


def test_no_budget_in_the_flat_form():
    """The words of pyproject.toml, where every key is there and a missing budget is "null"."""
    flat = {"privacy.epsilon": "null", "privacy.noise_multiplier": "null", "privacy.delta": "null"}
    config, _ = settings.resolve(settings.from_flat(flat), strategies.load)
    assert not config.privacy.on
    flat |= {"privacy.epsilon": 3, "privacy.insecure_seed": "null", "privacy.engine": "null"}
    privacy = settings.resolve(settings.from_flat(flat), strategies.load)[0].privacy
    assert (privacy.epsilon, privacy.insecure_seed, privacy.engine) == (3.0, None, None)
