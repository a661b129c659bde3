"""What a class may say of itself; what it may not is in tests/fedlora/testing/test_mistakes.py."""

from functools import cached_property

import pytest
from pydantic import field_serializer, field_validator, model_validator

import strategies
from fedlora import Strategy
from fedlora.declared import declared
from fedlora.errors import MethodError


class Whole(Strategy):
    """Everything that is no hook and no mistake."""

    pace: int = 3

    @field_validator("pace")
    @classmethod
    def positive(cls, pace: int) -> int:
        return abs(pace)

    @model_validator(mode="after")
    def whole(self) -> "Whole":
        return self

    @field_serializer("pace")
    def plain(self, pace: int) -> int:
        return pace

    @property
    def double(self) -> int:
        return 2 * self.pace

    @cached_property
    def triple(self) -> int:
        return 3 * self.pace

    def _helper(self) -> int:
        return self.double


def test_what_is_no_hook_and_no_mistake_passes() -> None:
    """Settings with validators, properties, helpers; what extends such; every built-in method."""

    class More(Whole):
        trained = frozenset({"A"})

    declared(More)
    for name in strategies.names():
        declared(strategies.load(name))


def test_a_helper_that_is_inherited_is_seen() -> None:
    """A mistake does not go away because another class extends the one that has it."""

    class Near(Strategy):
        @staticmethod
        def agregate(state: object) -> None: ...

    class Further(Near):
        pass

    with pytest.raises(MethodError, match=r"Further\.agregate .*'aggregate'"):
        declared(Further)
    with pytest.raises(MethodError, match=r"Listed\.shared is no set"):

        class Listed(Strategy):
            shared = ["A"]

        declared(Listed)
