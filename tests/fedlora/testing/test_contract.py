"""The contract's checks notice each kind of breach, and say which promise it was."""

import itertools
import textwrap
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


class Fickle(Strategy):
    asked: ClassVar = itertools.count()

    def broadcast(self, state, client, round):
        view = super().broadcast(state, client, round)
        return {k: t + next(self.asked) for k, t in view.items()}


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
    "the_state_keeps_its_shape": Forgetful,
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


MISTAKES = {
    "upload sends what stays": (
        """
        shared = {"A", "head"}

        def upload(self, tensors, client, round):
            return {**tensors, "layer.0.query.B": torch.zeros(24, 4)}
        """,
        r"Mine\.upload returned 'layer\.0\.query\.B', which a client does not send",
    ),
    "upload sends a slice": (
        "def upload(self, tensors, client, round): return {k: t[:1] for k, t in tensors.items()}",
        r"Mine\.upload returned .* in shape \(1, 40\), where the client has \(4, 40\)",
    ),
    "upload sends statistics": (
        """
        def upload(self, tensors, client, round):
            return {**tensors, "server/norm": torch.ones(1)}
        """,
        r"Mine\.upload returned 'server/norm'",
    ),
    "upload writes": (
        """
        def upload(self, tensors, client, round):
            return {k: t.mul_(2) for k, t in tensors.items()}
        """,
        r"Mine\.upload wrote into layer\.0\.query\.A",
    ),
    "upload writes through numpy": (
        """
        def upload(self, tensors, client, round):
            tensors["layer.0.query.A"].numpy()[:] = 0
            return tensors
        """,
        r"Mine\.upload wrote into layer\.0\.query\.A",
    ),
    "broadcast writes": (
        """
        def broadcast(self, state, client, round):
            state["layer.0.query.A"] += 1
            return state
        """,
        r"Mine\.broadcast wrote into layer\.0\.query\.A",
    ),
    "broadcast writes past the count": (
        """
        def broadcast(self, state, client, round):
            state["layer.0.query.A"].data[:] = 0
            return state
        """,
        r"Mine\.broadcast wrote into layer\.0\.query\.A",
    ),
    "place writes": (
        """
        def place(self, update, state, round):
            return {k: t.sub_(state[k]) for k, t in update.tensors.items()}
        """,
        r"Mine\.place wrote into layer\.0\.query\.A",
    ),
    "place writes into what was sent": (
        """
        def place(self, update, state, round):
            update.sent["head.classifier.bias"].zero_()
            return update.tensors
        """,
        r"Mine\.place wrote into head\.classifier\.bias",
    ),
    "aggregate writes": (
        """
        def aggregate(self, state, updates, round):
            for name, tensor in super().aggregate(state, updates, round).items():
                state[name].copy_(tensor)
            return {}
        """,
        r"Mine\.aggregate wrote into layer\.0\.query\.A",
    ),
    "aggregate changes the dictionary": (
        """
        def aggregate(self, state, updates, round):
            state["server/n"] = torch.ones(1)
            return super().aggregate(state, updates, round)
        """,
        r"Mine\.aggregate wrote into the dictionary that it was given, at server/n",
    ),
    "aggregate returns whole numbers": (
        """
        def aggregate(self, state, updates, round):
            return {**super().aggregate(state, updates, round), "server/n": torch.tensor(3)}
        """,
        r"Mine\.aggregate returned int64 .* for server/n",
    ),
    "aggregate returns complex numbers": (
        """
        def aggregate(self, state, updates, round):
            mean = super().aggregate(state, updates, round)
            return {k: torch.fft.fft(t) for k, t in mean.items()}
        """,
        r"Mine\.aggregate returned complex64",
    ),
    "broadcast sends memory": (
        """
        def begin(self, base): return {**base.initial(), "client/a/layer.0.query.A": torch.zeros(1)}
        def broadcast(self, state, client, round): return state
        """,
        r"Mine\.broadcast sends client/a/layer\.0\.query\.A, which is the server's memory",
    ),
    "broadcast sends another shape": (
        """
        def broadcast(self, state, client, round):
            return {k: t[:1] if k.endswith(".B") else t for k, t in state.items()}
        """,
        r"Mine\.broadcast gave what the adapter cannot hold.*layer\.0\.query\.B",
    ),
    "a method remembers": (
        """
        rounds: int = 0

        def aggregate(self, state, updates, round):
            self.rounds = round.number
            return super().aggregate(state, updates, round)
        """,
        r"Mine\.aggregate assigned to self\.rounds.*'server/rounds'",
    ),
    "a method remembers in private": (
        """
        def place(self, update, state, round):
            self._last = update.tensors
            return update.tensors
        """,
        r"Mine\.place assigned to self\._last.*'server/last'",
    ),
    "trains nothing": (
        "def trains(self, round): return {'R'} & self.trained",
        r"Mine\.trains leaves nothing to train in round 1",
    ),
    "trains what is not trained": (
        "trained = {'A'}\ndef trains(self, round): return {'A', 'B'}",
        r"Mine\.trains returned B, which `trained` = \['A'\]",
    ),
    "a hook is misspelt": (
        "def agregate(self, state, updates, round): return {}",
        r"Mine\.agregate is no hook of a method; did you mean 'aggregate'",
    ),
    "a part that is none": ("trained = {'A', 'C'}", r"Mine\.trained names C, a part that no"),
    "parts with a type": ("shared: set[str] = {'A'}", r"Mine\.shared has a type beside it"),
    "place is a hook that fails": (
        "def place(self, update, state, round): return {k: t @ t for k, t in state.items()}",
        r"Mine\.place raised RuntimeError",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_is_wrong_by_itself_says_so(mistake: str) -> None:
    """The class, the hook and the tensor, as in a run; and no other promise is blamed."""
    body, words = MISTAKES[mistake]
    source = "class Mine(Strategy):\n" + textwrap.indent(textwrap.dedent(body), "    ")
    names = {"Strategy": Strategy, "torch": torch, "__name__": "mine"}
    exec(source, names)
    with pytest.raises(MethodError, match=f"(?s){words}") as found:
        check_strategy(names["Mine"]())
    assert not any("held to" in note for note in getattr(found.value, "__notes__", []))
