"""Mistakes that a hook or a class makes by itself: the harness says what a run would say."""

import textwrap

import pytest
import torch

from fedlora import Strategy
from fedlora.errors import MethodError
from fedlora.testing import check_strategy

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
    "aggregate removes a part in some round": (
        """
        def aggregate(self, state, updates, round):
            mean = super().aggregate(state, updates, round)
            return mean | {k: None for k in mean if len(updates) == 1 and k.endswith(".B")}
        """,
        r"Mine\.aggregate returned None for layer\.0\.query\.B",
    ),
    "aggregate is not finite": (
        """
        def aggregate(self, state, updates, round):
            return {k: t / 0 for k, t in super().aggregate(state, updates, round).items()}
        """,
        r"Mine\.aggregate returned .* not finite",
    ),
    "begin is not finite": (
        "def begin(self, base): return {k: t.log() for k, t in base.initial().items()}",
        r"Mine\.begin returned .* not finite",
    ),
    "place is not finite": (
        "def place(self, update, state, round): return {k: t / 0 for k, t in state.items()}",
        r"Mine\.place returned .* not finite",
    ),
    "broadcast is not finite": (
        "def broadcast(self, state, client, round): return {k: t / 0 for k, t in state.items()}",
        r"Mine\.broadcast returned .* not finite",
    ),
    "upload is not finite": (
        "def upload(self, tensors, client, round): return {k: t / 0 for k, t in tensors.items()}",
        r"Mine\.upload returned .* not finite",
    ),
    "a mean beyond fp32": (
        """
        def place(self, update, state, round):
            side = 1 if update.client.id == "client-0" else -1
            return {k: torch.full_like(t, 3e38 * side) for k, t in state.items()}
        """,
        r"Mine\.place returned .* not finite",
    ),
    "broadcast leaves out what is sent up": (
        """
        def broadcast(self, state, client, round):
            return {k: t for k, t in state.items() if not k.endswith(".B")}
        """,
        r"Mine\.broadcast leaves out layer\.0\.output\.B, layer\.0\.query\.B, which clients",
    ),
    "upload sends what has moved": (
        """
        def upload(self, tensors, client, round):
            return {k: t for k, t in tensors.items() if t.any()}
        """,
        r"Mine\.upload sends layer\.0\.output\.B.* not depend on values",
    ),
    "rank is none": ("def rank(self, full, *_): return full / 2", r"Mine\.rank returned 2\.0"),
    "ranks differ unsaid": ("def rank(self, full, *_): return 1", r"Mine\.rank .*mixed_ranks"),
    "ranks differ and nothing is cut": (
        "mixed_ranks = True\ndef rank(self, full, index, *_): return full - index % 2",
        r"Mine\.broadcast returned layer\.0\.query\.A in shape \(4, 40\) for client-1",
    ),
    "scale is none": ("def scale(self, scaling, rank): return 0", r"Mine\.scale returned 0"),
    "an error of its own about meta": (
        """
        def aggregate(self, state, updates, round):
            if next(iter(state.values())).is_meta:
                raise KeyError("metadata")
            return super().aggregate(state, updates, round)
        """,
        r"Mine\.aggregate raised KeyError: 'metadata'",
    ),
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
