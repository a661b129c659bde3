"""The shared contract over every method, and over one of a user's own; and the papers' parts."""

from dataclasses import replace

import pytest
import torch

import strategies
from fedlora import Strategy
from fedlora.strategy import stays
from fedlora.tensors import part_of
from fedlora.testing import worst
from fedlora.testing.base import HEAD, PARTS
from fedlora.testing.promises import PROMISES, Case
from strategies.fedex import FedEx
from strategies.fedsa import FedSA
from strategies.fedsb import FedSB
from strategies.ffa import FFA
from strategies.fslora import FSLoRA


class Damped(Strategy):
    """A method of a user's own: half the way to the mean."""

    def aggregate(self, state, updates, round):
        mean = super().aggregate(state, updates, round)
        return {k: 0.5 * state[k] + 0.5 * t for k, t in mean.items()}


def mean(state, updates):
    """Each uploaded tensor's weighted mean."""
    return {k: sum(u.weight * u.tensors[k] for u in updates) for k in updates[0].tensors}


def halfway(state, updates):
    return {k: 0.5 * (state[k] + t) for k, t in mean(state, updates).items()}


def heads(state, updates):
    """The head's mean, for methods whose factors are another matter."""
    names = [k for k in updates[0].tensors if part_of(k) == "head"]
    return {k: sum(u.weight * u.tensors[k] for u in updates) for k in names}


FEDIT, LOCAL = strategies.load("fedit")(), strategies.load("local")()
CASES = {
    "ffa": Case(FFA(), "lora", exact=True, expected=mean),
    "fedex-average": Case(FedEx(), "lora", exact=True, expected=mean),
    "fedex-local": Case(FedEx(assignment="local"), "lora", exact=True, expected=heads),
    "fedex-reinit": Case(FedEx(assignment="reinit"), "lora", exact=True, expected=heads),
    "fedex-truncated": Case(FedEx(truncate=3), "lora", expected=mean),
    "fedsb-server": Case(FedSB(), "lora-sb", exact=True, expected=mean),
    "fedsb-xs": Case(FedSB(init="xs"), "lora-sb", exact=True, expected=mean),
    "fedit": Case(FEDIT, "lora", expected=mean),
    "fedit-vera": Case(FEDIT, "vera", expected=mean),
    "fedsa": Case(FedSA(), "lora", expected=mean),
    "fedsa-vera": Case(FedSA(), "vera", expected=mean),
    "fslora": Case(FSLoRA(), "lora", ranks=(4, 4, 4, 4), expected=mean),
    "fslora-mixed": Case(FSLoRA(), "lora", ranks=(2, 4, 3, 1), expected=heads),
    "local": Case(LOCAL, "lora", expected=mean),
    "damped": Case(Damped(), "lora", expected=halfway),
}

every = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@every
@pytest.mark.parametrize("promise", PROMISES, ids=lambda p: p.__name__)
def test_the_contract(case: Case, promise) -> None:
    """Every method keeps every promise of the contract, with a task head and without, and over a
    lossy wire."""
    for tried in (case, replace(case, head=False), replace(case, wire=torch.bfloat16)):
        promise(tried)


@pytest.mark.parametrize(
    ("name", "trained", "uploaded"),
    [
        ("fedit", "A B head", "A B head"),
        ("ffa", "B head", "B head"),
        ("fedex-average", "A B head", "A B head"),
        ("fedsa", "A B head", "A"),
        ("fedsa-vera", "d b head", "d"),
        ("fedsb-server", "R head", "R head"),
        ("fslora", "A B head", "A B head"),
        ("local", "A B head", ""),
    ],
)
def test_who_trains_and_uploads_what(name: str, trained: str, uploaded: str) -> None:
    """The parts of the papers: FFA freezes A and not the head, FedSA keeps B and the head."""
    strategy, parts = CASES[name].strategy, PARTS[CASES[name].kind] | {"head"}
    assert strategy.trained & parts == set(trained.split())
    assert strategy.shared & strategy.trained & parts == set(uploaded.split())


@every
def test_uploads_and_frozen_parts(case: Case) -> None:
    """Each of these uploads all that it shares, and changes no part that it does not share."""
    fed = case.federation()
    strategy, before = fed.strategy, fed.state
    fed.step()
    uploaded = strategy.trained & strategy.shared & fed.base.parts
    for u in fed.updates:
        assert {part_of(k) for k in u.tensors} == uploaded
    for name, tensor in before.items():
        if part_of(name) not in uploaded:
            assert torch.equal(fed.state[name], tensor)


@pytest.mark.parametrize("name", [n for n in CASES if n not in ("fslora-mixed", "damped")])
def test_one_client_is_its_own_mean(name: str) -> None:
    """A round with one client loses nothing of what that client learnt."""
    fed = CASES[name].federation()
    fed.step()
    fed.step((2,))
    client = fed.clients[2]
    assert worst(fed.effective(client), fed.ended(fed.updates[0])) < 1e-6


@pytest.mark.parametrize("name", ["fedsa", "fedsa-vera", "local"])
def test_what_stays_never_travels(name: str) -> None:
    """B and the head (VeRA's b) stay with the client: kept there, uploaded by nobody, and sent to
    no client that has its own."""
    fed = CASES[name].federation()
    private = stays(fed.strategy) & fed.base.parts
    for _ in range(2):
        fed.step()
        for u in fed.updates:
            assert {part_of(k) for k in fed.kept[u.client.id]} == private
            assert not any(part_of(k) in private for k in u.tensors)
            lacks = fed.lacks(u.client, fed.view(u.client, fed.round()))
            assert not any(part_of(k) in private for k in lacks)


def test_bytes_of_a_round() -> None:
    """At first contact everything, later what changed: FFA's A travels once, the head each time."""
    fed = CASES["ffa"].federation()
    A = 4 * 4 * (40 + 28)
    B = 4 * 4 * (24 + 60)
    head = 4 * sum(torch.Size(s).numel() for s in HEAD.values())
    fed.step()
    assert (fed.bytes["client-1"].up, fed.bytes["client-1"].down) == (B + head, A + B + head)
    fed.step()
    assert (fed.bytes["client-1"].up, fed.bytes["client-1"].down) == (B + head, B + head)
