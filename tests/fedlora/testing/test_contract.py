"""The contract's checks notice each kind of breach, and say which promise it was."""

import itertools
from typing import Annotated, ClassVar

import pytest
import torch
from pydantic import AfterValidator

from fedlora import Strategy
from fedlora.errors import MethodError
from fedlora.testing import check_strategy
from fedlora.testing.promises import PROMISES
from strategies.fslora import FSLoRA
from tests.strategies.test_methods import Damped, halfway, mean


class Halving(Strategy):
    pace: Annotated[float, AfterValidator(lambda x: x / 2)] = 1.0


class Wishful(Strategy):
    defaults = {"adapter.rnk": 8}


class Talkative(Strategy):
    shared = {"A", "head"}

    def upload(self, tensors, client, round):
        return tensors


class Leaky(Strategy):
    def begin(self, base):
        return {**base.initial(), "server/count": torch.zeros(1)}

    def broadcast(self, state, client, round):
        return state


class Fickle(Strategy):
    asked: ClassVar = itertools.count()

    def broadcast(self, state, client, round):
        view = super().broadcast(state, client, round)
        return {k: t + next(self.asked) for k, t in view.items()}


class InPlace(Strategy):
    def aggregate(self, state, updates, round):
        for name, tensor in super().aggregate(state, updates, round).items():
            state[name].copy_(tensor)
        return {}


class Forgetful(Strategy):
    def aggregate(self, state, updates, round):
        mean = super().aggregate(state, updates, round)
        return mean | {k: None for k in mean if len(updates) == 1 and k.endswith(".B")}


class First(Strategy):
    def aggregate(self, state, updates, round):
        return updates[0].tensors


class Unweighted(Strategy):
    def aggregate(self, state, updates, round):
        return {k: sum(u.tensors[k] for u in updates) / len(updates) for k in updates[0].tensors}


class Weighing(Strategy):
    def place(self, update, state, round):
        return {k: update.weight * t for k, t in update.tensors.items()}


class Drawing(Strategy):
    def aggregate(self, state, updates, round):
        mean = super().aggregate(state, updates, round)
        return {k: t + 1e-9 * torch.randn(t.shape) for k, t in mean.items()}


class Common(Strategy):
    shared = {"A"}

    def upload(self, tensors, client, round):
        for name, tensor in tensors.items():
            if name.endswith(".B"):
                tensor.zero_()
        return super().upload(tensors, client, round)


BREACHES = {
    "settings_are_kept": Halving,
    "defaults_exist": Wishful,
    "uploads_are_shared_parts": Talkative,
    "downloads_are_what_is_lacking": Leaky,
    "nothing_is_written_over": InPlace,
    "the_state_keeps_its_shape": Forgetful,
    "order_does_not_matter": First,
    "weights_matter": Unweighted,
    "folding_is_aggregating": Weighing,
    "a_run_goes_on_from_its_checkpoint": Drawing,
    "what_stays_is_the_clients_own": Common,
    "the_equation_holds": Strategy,
}


@pytest.mark.parametrize("promise", PROMISES, ids=lambda p: p.__name__)
def test_a_breach_is_seen(promise) -> None:
    """For every promise there is a method that breaks it, and the note says so."""
    broken = BREACHES[promise.__name__]
    with pytest.raises((AssertionError, MethodError)) as found:
        check_strategy(broken(), exact=promise.__name__ == "the_equation_holds")
    (note,) = found.value.__notes__
    assert note.endswith(promise.__doc__) and note.startswith(f"{broken.__name__} on lora")


def test_methods_that_keep_their_word() -> None:
    """One of a user's own with its equation, one with mixed ranks, on another adapter too; and one
    that has no use for weights may say so."""
    check_strategy(Damped(), expected=halfway)
    check_strategy(Damped(), "vera", expected=halfway)
    check_strategy(FSLoRA())
    check_strategy(Unweighted(), weighted=False)


@pytest.mark.parametrize("wrong", [mean, lambda state, updates: {"layer.0.query.C": state["x"]}])
def test_another_equation_is_seen(wrong) -> None:
    """The expected state is compared by value, and a mistake in it is an error."""
    with pytest.raises((AssertionError, KeyError)):
        check_strategy(Damped(), expected=wrong)


def test_a_mistake_in_a_hook_names_it() -> None:
    """As a run would name it."""

    class Broken(Strategy):
        def aggregate(self, state, updates, round):
            return {k: t.T for k, t in state.items() if k.endswith(".A")}

    with pytest.raises(MethodError, match=r"Broken\.aggregate returned .* in shape"):
        check_strategy(Broken())


def test_a_view_that_differs_when_asked_twice_is_seen() -> None:
    """It would be sent again and again."""
    with pytest.raises(AssertionError, match="asked twice"):
        check_strategy(Fickle())
