"""For authors of methods: `check_strategy` holds one to the contract; the rest is what it is made
of, for tests of a method's own equations."""

from fedlora.testing.base import FakeBase
from fedlora.testing.contract import check_strategy
from fedlora.testing.federation import Federation
from fedlora.testing.truth import deltas, worst

__all__ = ["FakeBase", "Federation", "check_strategy", "deltas", "worst"]
