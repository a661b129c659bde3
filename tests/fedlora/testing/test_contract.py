"""The contract's checks notice each kind of breach, and say which promise it was."""

import itertools
from typing import Annotated, ClassVar

import pytest
import torch
from pydantic import AfterValidator

from fedlora import Strategy
from fedlora.errors import MethodError
from fedlora.tensors import part_of, select
from fedlora.testing import Federation, check_strategy
from fedlora.testing.promises import PROMISES
from strategies.fslora import FSLoRA
from tests.strategies.test_methods import Damped, halfway, mean


class Halving(Strategy):
    pace: Annotated[float, AfterValidator(lambda x: x / 2)] = 1.0


class Wishful(Strategy):
    defaults = {"adapter.rnk": 8}


class Fickle(Strategy):
    asked: ClassVar = itertools.count()

    def broadcast(self, state, client, round):
        view = super().broadcast(state, client, round)
        return {k: t + next(self.asked) for k, t in view.items()}


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


class ForgetsTheHead(Strategy):
    def aggregate(self, state, updates, round):
        mean = super().aggregate(state, updates, round)
        return {k: t for k, t in mean.items() if not k.startswith("head.")}


class Counting(Strategy):
    """Places an update by how many of lower ids came just before it."""

    seen: ClassVar = []

    def place(self, update, state, round):
        if self.seen and update.client.id <= self.seen[-1]:
            self.seen.clear()
        self.seen.append(update.client.id)
        return {k: t * (1 + 1e-7 * len(self.seen)) for k, t in update.tensors.items()}


class Untrained(Strategy):
    shared = {"A"}

    def trains(self, round):
        return {"A"}


class Sly(Strategy):
    """Sends A anew in each round, and not where there are no values to count."""

    trained = {"B", "head"}

    def broadcast(self, state, client, round):
        view = super().broadcast(state, client, round)
        values = not next(iter(view.values())).is_meta
        return {k: t + round.number if values and k.endswith(".A") else t for k, t in view.items()}


BREACHES = {
    "settings_are_kept": Halving,
    "defaults_exist": Wishful,
    "a_run_goes_on_from_its_checkpoint": Drawing,
    "downloads_are_what_is_lacking": Fickle,
    "what_is_uploaded_counts": ForgetsTheHead,
    "order_does_not_matter": First,
    "weights_matter": Unweighted,
    "folding_is_aggregating": Weighing,
    "central_privacy_bounds_each_client": Counting,
    "what_stays_is_the_clients_own": Untrained,
    "cost_counts_what_is_sent": Sly,
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


class ByLoss(Strategy):
    """Weighs by what clients say beside their tensors."""

    def aggregate(self, state, updates, round):
        w = [u.weight / (1e-3 + u.metrics["loss"]) for u in updates]
        pairs = list(zip(w, updates, strict=True))
        return {k: sum(x / sum(w) * u.tensors[k] for x, u in pairs) for k in updates[0].tensors}


class Mixed(Strategy):
    """Gives half of the clients one direction of four, a row of A and a column of B."""

    mixed_ranks = True

    def rank(self, full, index, client, round):
        return full if index % 2 else 1

    def broadcast(self, state, client, round):
        k, view = client.rank, super().broadcast(state, client, round)
        cut = {"A": lambda t: t[:k], "B": lambda t: t[:, :k]}
        return {name: cut.get(part_of(name), lambda t: t)(t) for name, t in view.items()}

    def place(self, update, state, round):
        k, placed = update.client.rank, dict(update.tensors)
        for name, t in select(placed, {"A"}).items():
            placed[name] = torch.cat([t, state[name][k:]])
        for name, t in select(placed, {"B"}).items():
            placed[name] = torch.cat([t, state[name][:, k:]], 1)
        return placed


class Bounds(Strategy):
    """Its norm wants values, which there are none of on the meta device."""

    def place(self, update, state, round):
        change = {k: t - update.sent[k] for k, t in update.tensors.items()}
        norm = sum(float(t.square().sum()) for t in change.values()) ** 0.5
        return {k: update.sent[k] + t / max(1.0, norm) for k, t in change.items()}


class Untidy(Strategy):
    """What a run takes as it is: float64, tensors that are not contiguous, parts of larger ones,
    one tensor under two names, and inputs given back."""

    def begin(self, base):
        return {k: t.double() for k, t in base.initial().items()}

    def broadcast(self, state, client, round):
        view = super().broadcast(state, client, round)
        return {k: torch.cat([t, t])[: len(t)] for k, t in view.items()}

    def upload(self, tensors, client, round):
        whole = super().upload(tensors, client, round)
        return {k: t.T.contiguous().T if t.ndim == 2 else t for k, t in whole.items()}

    def aggregate(self, state, updates, round):
        mean = super().aggregate(state, updates, round)
        found = {k: t.T.contiguous().T if t.ndim == 2 else t for k, t in mean.items()}
        both = {f"server/{i}": found["layer.0.query.A"] for i in range(2)}
        return {**found, **both, "server/before": state["layer.0.query.A"]}


def test_methods_that_keep_their_word() -> None:
    """One of a user's own with its equation, one with mixed ranks, on another adapter too; and one
    that has no use for weights may say so."""
    check_strategy(Damped(), expected=halfway)
    check_strategy(Damped(), "vera", expected=halfway)
    check_strategy(FSLoRA())
    check_strategy(Unweighted(), weighted=False)
    check_strategy(Bounds())
    check_strategy(Untidy(), expected=mean)
    check_strategy(ByLoss())
    check_strategy(Mixed())


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


def test_a_nan_is_like_a_nan() -> None:
    """A hook that finds one in its state and leaves it alone has not written it."""
    fed = Federation(Strategy())
    fed.state = {k: t * torch.nan for k, t in fed.state.items()}
    assert all(t.isnan().all() for t in fed.view(fed.clients[0], fed.round()).values())


def test_half_precision_is_told_as_one_cause() -> None:
    """Rounded to fp16, sums in another order are others."""

    class Half(Strategy):
        def aggregate(self, state, updates, round):
            return {k: t.half() for k, t in super().aggregate(state, updates, round).items()}

    with pytest.raises(AssertionError, match="computes in less"):
        check_strategy(Half())
