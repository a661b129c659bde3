"""What the contract of a method promises, each promise as one check over a small federation.

The federation has non-square layers, α ≠ r, and four clients of uneven weight who come and go, one
of them alone in some rounds.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from safetensors.torch import load, save

from fedlora.config import Config
from fedlora.guard import called, changes
from fedlora.mean import Mean
from fedlora.strategy import Strategy, Update, is_linear, merge, stays
from fedlora.tensors import RESIDUAL, Tensors, is_memory, nbytes, part_of, select
from fedlora.testing.base import FakeBase
from fedlora.testing.federation import EVERYBODY, Federation
from fedlora.testing.truth import worst

Truth = Callable[[Tensors, Sequence[Update]], Tensors]
COME_AND_GO = [EVERYBODY, (1, 3), (0, 1), (2,), (0, 2, 3), (1, 2)]


@dataclass(frozen=True)
class Case:
    """A method on an adapter, with what its author says of it."""

    strategy: Strategy
    kind: str
    ranks: tuple[int, ...] = (4, 4, 4, 4)
    head: bool = True
    exact: bool = False
    weighted: bool = True
    expected: Truth | None = None

    def federation(self) -> Federation:
        base = FakeBase(self.kind, head=self.head)
        return Federation(self.strategy, self.kind, ranks=self.ranks, base=base)


def settings_are_kept(case: Case) -> None:
    """Settings written into a run's config.toml and read back are the same method."""
    method = case.strategy
    again = type(method).model_validate(method.model_dump(mode="json"))
    _hold(again == method, f"{method!r} comes back as {again!r}")


def defaults_exist(case: Case) -> None:
    """The configuration that a method wants has keys that exist."""
    known = Config().model_dump()
    for key in case.strategy.defaults:
        section, _, name = key.partition(".")
        _hold(name in known.get(section, {}), f"there is no {key}, which `defaults` names")


def uploads_are_shared_parts(case: Case) -> None:
    """A client uploads trained parts that it shares, no more bytes than they have, and nothing of
    what stays with it."""
    fed = case.federation()
    for participants in [EVERYBODY, (1, 3)]:
        fed.step(participants)
        parts = fed.strategy.trains(fed.round()) & fed.strategy.shared & fed.base.parts
        for u in fed.updates:
            odd = sorted(k for k in u.tensors if part_of(k) not in parts)
            _hold(not odd, f"uploads {odd}, whose parts are not among {sorted(parts)}")
            most = nbytes(select(u.sent, parts))
            _hold(nbytes(u.tensors) <= most, f"uploads more than the {most} bytes of its parts")


def downloads_are_what_is_lacking(case: Case) -> None:
    """Memory never travels, and a view that is asked for twice is the same, so that a client which
    holds it is sent nothing."""
    fed = case.federation()
    for _ in range(2):
        fed.step()
        for client, u in zip(fed.clients, fed.updates, strict=True):
            memory = sorted(filter(is_memory, u.sent))
            _hold(not memory, f"broadcast sends the server's memory: {memory}")
            now = fed.round()
            one, other = (fed.view(client, now) for _ in range(2))
            _same(one, other, "asked twice in a round, broadcast differs in")


def nothing_is_written_over(case: Case) -> None:
    """Hooks make new tensors: state and updates are not changed in place."""
    fed = case.federation()
    for participants in [EVERYBODY, (1, 3)]:
        before, values = fed.state, _copies(fed.state)
        fed.number += 1
        updates = [fed.train(fed.clients[i], 1 / len(participants)) for i in participants]
        uploads = [_copies(u.tensors) for u in updates]
        fed.aggregate(updates)
        _same(before, values, "changed in place, in the state:")
        for u, upload in zip(updates, uploads, strict=True):
            _same(u.tensors, upload, "changed in place, in an update:")


def the_state_keeps_its_shape(case: Case) -> None:
    """Across rounds, one client alone included, names and shapes stay; a layer's residual and
    memory may come, go and grow."""
    fed = case.federation()
    begun = _shapes(fed.state)
    for participants in COME_AND_GO:
        fed.step(participants)
        now = _shapes(fed.state)
        changed = {k for k in begun.keys() | now.keys() if begun.get(k) != now.get(k)}
        _hold(not changed, f"aggregate changed names or shapes of {sorted(changed)}")


def order_does_not_matter(case: Case) -> None:
    """Clients in another order give the same models, up to rounding."""
    one, other = case.federation(), case.federation()
    one.step(EVERYBODY)
    other.step((3, 1, 0, 2))
    for client in one.clients:
        error = worst(other.effective(client), one.effective(client))
        _hold(error < 1e-6, f"permuted clients change {client.id}'s model by {error:.1e}")


def weights_matter(case: Case) -> None:
    """Uneven weights give another state than even ones, wherever something is shared."""
    if not case.weighted:
        return
    one, other = case.federation(), case.federation()
    one.step((0, 1), (1.0, 1.0))
    other.step((0, 1), (1.0, 3.0))
    changed = any(not torch.equal(t, other.state[k]) for k, t in one.state.items())
    shares = bool(one.updates[0].tensors)
    _hold(changed or not shares, "update.weight changes nothing; weighted=False if that is meant")


def folding_is_aggregating(case: Case) -> None:
    """A method that leaves `aggregate` alone is folded in as updates arrive, and its weights are
    normalised at the end: `place` may not depend on them."""
    if not is_linear(case.strategy):
        return
    fed = case.federation()
    before = fed.state
    fed.step()
    mean = Mean()
    for u in fed.updates:
        unknown = replace(u, weight=17.0 * u.weight)
        placed = called(fed.strategy, "place", unknown, before, fed.round())
        mean.add(merge({}, changes(fed.strategy, "place", placed, before)), unknown.weight)
    _close(merge(before, mean.result()), fed.state)


def a_run_goes_on_from_its_checkpoint(case: Case) -> None:
    """The state through safetensors and back gives the next rounds to the bit, and draws come from
    seeded streams: no global random generator moves."""
    globals_before = _global_generators()
    one, other = case.federation(), case.federation()
    for fed in (one, other):
        fed.step((0, 1, 3))
    other.state = load(save(other.state))
    for fed in (one, other):
        fed.step((1, 2))
    _same(one.state, other.state, "after a restart differs")
    _hold(_global_generators() == globals_before, "draws move a global random generator")


def what_stays_is_the_clients_own(case: Case) -> None:
    """Parts that are trained and not shared differ between clients, and are to the bit what they
    were after rounds that a client sits out."""
    own = stays(case.strategy) & FakeBase(case.kind, head=case.head).parts
    fed = case.federation()
    fed.step()
    kept = {id: _copies(t) for id, t in fed.kept.items()}
    fed.step((0, 1))
    absent = fed.clients[3]
    held = select(fed.local(absent, fed.round()), own)
    _same(held, select(kept[absent.id], own), "what stays changed while its client was away:")
    for name in held:
        _hold(
            not torch.equal(kept["client-2"][name], kept["client-3"][name]),
            f"{name} stays with clients and is the same on two of them",
        )


def the_equation_holds(case: Case) -> None:
    """What the author states is what comes out: exactness, or the expected state, in float64."""
    if not case.exact and case.expected is None:
        return
    fed = case.federation()
    for participants in COME_AND_GO:
        before = fed.state
        fed.step(participants)
        if case.expected is not None:
            updates = [replace(u, tensors=_double(u.tensors)) for u in fed.updates]
            _close(fed.state, case.expected(_double(before), updates))
        if case.exact:
            truth = fed.mean_of_products()
            models = {"the server": fed.server()} | {c.id: fed.effective(c) for c in fed.clients}
            for owner, model in models.items():
                error = worst(model, truth)
                _hold(error < 1e-6, f"{owner} is off the mean of the products by {error:.1e}")


PROMISES: tuple[Callable[[Case], None], ...] = (
    settings_are_kept,
    defaults_exist,
    uploads_are_shared_parts,
    downloads_are_what_is_lacking,
    nothing_is_written_over,
    the_state_keeps_its_shape,
    order_does_not_matter,
    weights_matter,
    folding_is_aggregating,
    a_run_goes_on_from_its_checkpoint,
    what_stays_is_the_clients_own,
    the_equation_holds,
)


def _hold(kept: bool, otherwise: str) -> None:
    if not kept:
        raise AssertionError(otherwise)


def _same(one: Tensors, other: Tensors, what: str) -> None:
    odd = one.keys() ^ other.keys()
    odd |= {k for k in one.keys() & other.keys() if not torch.equal(one[k], other[k])}
    _hold(not odd, f"{what} {', '.join(sorted(odd))}")


def _close(ours: Tensors, truth: Tensors) -> None:
    for name, value in truth.items():
        _hold(name in ours, f"the state lacks {name}, which is expected")
        try:
            torch.testing.assert_close(ours[name].double(), value.double(), rtol=1e-5, atol=1e-6)
        except AssertionError as e:
            raise AssertionError(f"{name} is not what is expected: {e}") from None


def _copies(tensors: Tensors) -> Tensors:
    return {k: t.clone() for k, t in tensors.items()}


def _double(tensors: Tensors) -> Tensors:
    return {k: t.double() for k, t in tensors.items()}


def _shapes(state: Tensors) -> dict[str, torch.Size]:
    lasting = (k for k in state if not is_memory(k) and part_of(k) not in RESIDUAL)
    return {k: state[k].shape for k in lasting}


def _global_generators() -> tuple[list[int], object, str]:
    return torch.get_rng_state().tolist(), random.getstate(), repr(np.random.get_state())
