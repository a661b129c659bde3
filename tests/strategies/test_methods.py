"""The shared harness over every method, and over one of a user's own."""

import pytest
import torch
from safetensors.torch import load, save

import strategies
from fedlora import Strategy, Tensors
from fedlora.mean import Mean
from fedlora.strategy import is_linear, merge, stays
from fedlora.tensors import RESIDUAL, is_memory, part_of, select
from strategies.fedex import FedEx
from strategies.fedsa import FedSA
from strategies.fedsb import FedSB
from strategies.ffa import FFA
from strategies.fslora import FSLoRA
from tests.strategies.harness import HEAD, PARTS, Federation, worst


class Damped(Strategy):
    """A method of a user's own: half the way to the mean."""

    def aggregate(self, state, updates, round):
        mean = super().aggregate(state, updates, round)
        return {k: 0.5 * state[k] + 0.5 * t for k, t in mean.items()}


Case = tuple[Strategy, str, tuple[int, ...]]
EVEN = (4, 4, 4, 4)
EXACT: dict[str, Case] = {
    "ffa": (FFA(), "lora", EVEN),
    "fedex-average": (FedEx(), "lora", EVEN),
    "fedex-local": (FedEx(assignment="local"), "lora", EVEN),
    "fedex-reinit": (FedEx(assignment="reinit"), "lora", EVEN),
    "fedsb-server": (FedSB(), "lora-sb", EVEN),
    "fedsb-xs": (FedSB(init="xs"), "lora-sb", EVEN),
}
CASES: dict[str, Case] = EXACT | {
    "fedit": (strategies.load("fedit")(), "lora", EVEN),
    "fedit-vera": (strategies.load("fedit")(), "vera", EVEN),
    "fedex-truncated": (FedEx(truncate=3), "lora", EVEN),
    "fedsa": (FedSA(), "lora", EVEN),
    "fedsa-vera": (FedSA(), "vera", EVEN),
    "fslora": (FSLoRA(), "lora", EVEN),
    "fslora-mixed": (FSLoRA(), "lora", (2, 4, 3, 1)),
    "local": (strategies.load("local")(), "lora", EVEN),
    "damped": (Damped(), "lora", EVEN),
}

every = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
exact = pytest.mark.parametrize("case", EXACT.values(), ids=EXACT)


def federation(case: Case, **options) -> Federation:
    strategy, kind, ranks = case
    return Federation(strategy, kind, ranks=ranks, **options)


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
    strategy, kind, _ = CASES[name]
    parts = PARTS[kind] | {"head"}
    assert strategy.trained & parts == set(trained.split())
    assert strategy.shared & strategy.trained & parts == set(uploaded.split())


@exact
def test_everybody_holds_the_mean_of_the_products(case: Case) -> None:
    """Exact methods: after each round every client, also one that sat it out, has
    Σ p_i s_i B_i A_i (with R, with the residual), and so has the server."""
    fed = federation(case)
    for participants in [(0, 1, 2, 3), (1, 3), (0, 1), (2,), (0, 2, 3), (1, 2)]:
        fed.step(participants)
        truth = fed.mean_of_products()
        assert worst(fed.server(), truth) < 1e-6
        for client in fed.clients:
            assert worst(fed.effective(client), truth) < 1e-6


@every
def test_uploads_and_frozen_parts(case: Case) -> None:
    """A method uploads shared parts alone, changes no part it does not share, keeps its memory to
    itself, and averages the head where it shares it."""
    fed = federation(case)
    strategy, before = fed.strategy, fed.state
    fed.step()
    trained = strategy.trained & (PARTS[fed.kind] | {"head"})
    for u in fed.updates:
        assert {part_of(k) for k in u.tensors} == strategy.shared & trained
        assert not any(map(is_memory, u.sent))
    for name, tensor in before.items():
        if part_of(name) not in strategy.shared & trained:
            assert torch.equal(fed.state[name], tensor)
    for name in HEAD if "head" in strategy.shared else ():
        mean = sum(u.weight * u.tensors[name].double() for u in fed.updates)
        target = 0.5 * (mean + before[name]) if isinstance(strategy, Damped) else mean
        torch.testing.assert_close(fed.state[name].double(), target, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["fedit", "fedit-vera", "fedsa", "fedsa-vera", "fslora", "damped"])
def test_shared_parts_are_the_weighted_mean(name: str) -> None:
    """Methods that average parts: each shared part is the float64 mean of the uploads."""
    fed = federation(CASES[name])
    before = fed.state
    fed.step((0, 2, 3))
    for part in fed.updates[0].tensors:
        mean = sum(u.weight * u.tensors[part].double() for u in fed.updates)
        if name == "damped":
            mean = 0.5 * (mean + before[part].double())
        torch.testing.assert_close(fed.state[part].double(), mean, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", [n for n in CASES if n not in ("fslora-mixed", "damped")])
def test_one_client_is_its_own_mean(name: str) -> None:
    """A round with one client loses nothing of what that client learnt."""
    fed = federation(CASES[name])
    fed.step()
    fed.step((2,))
    client = fed.clients[2]
    assert worst(fed.effective(client), fed.ended(fed.updates[0])) < 1e-6


@every
def test_the_order_of_clients_does_not_matter(case: Case) -> None:
    """Permuted updates give the same model, up to rounding."""
    one, other = federation(case), federation(case)
    for fed, participants in ((one, (0, 1, 2, 3)), (other, (3, 1, 0, 2))):
        fed.step(participants)
    for client in one.clients:
        assert worst(other.effective(client), one.effective(client)) < 1e-6


@every
def test_weights_matter(case: Case) -> None:
    """Uneven weights give another state than even ones, wherever something is shared."""
    one, other = federation(case), federation(case)
    one.step((0, 1), (1.0, 1.0))
    other.step((0, 1), (1.0, 3.0))
    changed = any(not torch.equal(t, other.state[k]) for k, t in one.state.items())
    assert changed == bool(one.updates[0].tensors)


@pytest.mark.parametrize("name", [n for n, (strategy, *_) in CASES.items() if is_linear(strategy)])
def test_folding_one_by_one_is_aggregate(name: str) -> None:
    """A linear method may be folded as updates arrive, with weights normalised at the end."""
    fed = federation(CASES[name])
    before = fed.state
    fed.step()
    mean = Mean()
    for u in fed.updates:
        mean.add(fed.strategy.place(u, before, fed.round()), 17.0 * u.weight)
    folded = merge(before, mean.result())
    for name, tensor in fed.state.items():
        torch.testing.assert_close(folded[name], tensor, rtol=1e-6, atol=1e-7)


@every
@pytest.mark.usefixtures("global_rng_untouched")
def test_a_state_read_back_goes_on_to_the_same_bits(case: Case) -> None:
    """The state is plain tensors, contiguous and each with its own memory: through safetensors and
    back, the next rounds are the same; and no draw touches a global generator."""
    one, other = federation(case), federation(case)
    for fed in (one, other):
        fed.step((0, 1, 3))
    other.state = load(save(other.state))
    for fed in (one, other):
        fed.step((1, 2))
    assert bits(one.state) == bits(other.state)


@every
def test_the_state_keeps_its_names_and_shapes(case: Case) -> None:
    """Across rounds only the residual and memory come, go or grow."""
    fed = federation(case)
    before = {k: t.shape for k, t in fed.state.items()}
    for participants in [(0, 1, 2, 3), (0, 1), (3,)]:
        fed.step(participants)
        now = {
            k: t.shape
            for k, t in fed.state.items()
            if not is_memory(k) and part_of(k) not in RESIDUAL
        }
        assert now == before


@pytest.mark.parametrize("name", ["fedsa", "fedsa-vera", "local"])
def test_what_stays_on_a_client_is_its_own(name: str) -> None:
    """B and the head (VeRA's b) differ between clients, and are bitwise what they were across
    rounds that a client sits out."""
    fed = federation(CASES[name])
    fed.step()
    kept = {i: bits(t) for i, t in fed.kept.items()}
    assert len({str(b) for b in kept.values()}) == len(fed.clients)
    fed.step((0, 1))
    absent = fed.clients[3]
    private = stays(fed.strategy)
    assert {part_of(k) for k in fed.kept[absent.id]} == private & (PARTS[fed.kind] | {"head"})
    assert bits(select(fed.local(absent, fed.round()), private)) == kept[absent.id]
    assert not any(part_of(k) in private for u in fed.updates for k in u.tensors)


def bits(tensors: Tensors) -> dict[str, bytes]:
    return {k: t.contiguous().numpy().tobytes() for k, t in tensors.items()}
