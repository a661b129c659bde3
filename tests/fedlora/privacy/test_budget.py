"""Paying for a release: up to the target and not past it, a new secret each time."""

import pytest

from fedlora.config.privacy import Privacy
from fedlora.privacy import accounting
from fedlora.privacy.accounting import Mechanism
from fedlora.privacy.budget import Spent, epsilon, pay
from fedlora.privacy.entropy import insecure
from fedlora.privacy.ledger import Ledger

SIGMA = accounting.noise_multiplier(3.0, 1e-5, 0.1, 6)


@pytest.fixture
def ledger(tmp_path):
    made = Ledger(tmp_path / "privacy.json")
    made.plan(Mechanism(SIGMA, 0.1, 1e-5))
    return made


def test_the_target_is_reached_and_not_passed(ledger):
    """Two releases of three steps fit what σ was solved for; a third is refused, in words, and
    leaves the account as it was. Each has a secret of its own."""
    privacy = Privacy(epsilon=3.0)
    assert epsilon(ledger, [], privacy) == 0.0
    assert pay(ledger, privacy, 3) != pay(ledger, privacy, 3)
    assert 2.94 <= epsilon(ledger, ledger.history, privacy) <= 3.0
    with pytest.raises(Spent, match=r"budget is spent: ε is 2\.\d+.*past privacy\.epsilon = 3"):
        pay(ledger, privacy, 1)
    assert sum(steps for _, _, steps in ledger.history) == 6


def test_without_a_target_nothing_is_refused(ledger):
    """Where only σ is given, ε is what it comes to."""
    privacy = Privacy(noise_multiplier=SIGMA)
    for _ in range(4):
        pay(ledger, privacy, 3)
    assert epsilon(ledger, ledger.history, privacy) > 3.0


def test_an_insecure_seed_is_paid_for_all_the_same(ledger):
    """It stands in for the secret, by the release's name, and the account is kept as ever."""
    privacy = Privacy(epsilon=3.0, insecure_seed=7)
    assert pay(ledger, privacy, 3, "train", "a", 1) == insecure(7, "train", "a", 1)
    assert sum(steps for _, _, steps in ledger.history) == 3


def test_before_there_is_a_plan_nothing_is_spent(tmp_path):
    """A ledger that nobody used yet."""
    assert epsilon(Ledger(tmp_path / "new.json"), [], Privacy(epsilon=1.0)) == 0.0
