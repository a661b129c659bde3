"""What the contract of a method promises, each promise as one check over a small federation.

The federation has non-square layers, α ≠ r, and four clients of uneven weight who come and go, one
of them alone in some rounds.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from safetensors.torch import load, save

from fedlora.config import Config
from fedlora.guard import placed, sends
from fedlora.mean import Mean
from fedlora.rehearsal import Rehearsal
from fedlora.strategy import Base, Round, Strategy, Update, is_linear, merge, stays
from fedlora.tensors import Tensors, part_of, select
from fedlora.testing.base import FakeBase, Shadow
from fedlora.testing.federation import EVERYBODY, Federation
from fedlora.testing.holding import close, copies, double, generators, hold, same
from fedlora.testing.truth import worst

Truth = Callable[[Tensors, Sequence[Update]], Tensors]
Promise = Callable[["Case"], None]
COME_AND_GO = [EVERYBODY, (1, 3), (0, 1), (2,), (0, 2, 3), (1, 2)]


@dataclass(frozen=True)
class Case:
    """A method on an adapter, with what its author says of it."""

    strategy: Strategy
    kind: str
    ranks: tuple[int, ...] = (0, 0, 0, 0)  # as nodes set them; 0 leaves it to the method
    head: bool = True
    exact: bool = False
    weighted: bool = True
    expected: Truth | None = None
    wire: torch.dtype = torch.float32

    @property
    def base(self) -> FakeBase:
        return FakeBase(self.kind, head=self.head)

    def federation(self) -> Federation:
        return Federation(
            self.strategy, self.kind, ranks=self.ranks, wire=self.wire, base=self.base
        )


def settings_are_kept(case: Case) -> None:
    """Settings written into a run's config.toml and read back are the same method, and a round
    leaves them as they were."""
    method = case.strategy
    again = _again(method)
    hold(again == method, f"{method!r} comes back as {again!r}")
    case.federation().step()
    hold(again == method, f"a round turned {again!r} into {method!r}")


def _again(method: Strategy) -> Strategy:
    """The method as another process has it, from its settings."""
    return type(method).model_validate(method.model_dump(mode="json"))


def defaults_exist(case: Case) -> None:
    """The configuration that a method wants has keys that exist."""
    known = Config().model_dump()
    for key in case.strategy.defaults:
        section, _, name = key.partition(".")
        hold(name in known.get(section, {}), f"there is no {key}, which `defaults` names")


def downloads_are_what_is_lacking(case: Case) -> None:
    """Whoever came to a round, one client alone included, a view that is asked for twice is the
    same, so that a client which holds it is sent nothing."""
    fed = case.federation()
    for participants in COME_AND_GO:
        fed.step(participants)
        for client in fed.clients:
            one, other = (fed.view(client, fed.round()) for _ in range(2))
            same(one, other, "asked twice in a round, broadcast differs in")


def what_is_uploaded_counts(case: Case) -> None:
    """Each part that clients upload changes what the round comes to: one that is thrown away would
    be trained and sent for nothing."""
    fed = case.federation()
    for _ in range(2):
        fed.step()
        after, fed.state = fed.state, fed.before
        for part in sorted({part_of(k) for u in fed.updates for k in u.tensors}):
            fed.state = fed.before
            fed.aggregate([_moved(u, part) for u in fed.updates])
            counts = any(not torch.equal(t, after[k]) for k, t in fed.state.items() if k in after)
            counts |= fed.state.keys() != after.keys()
            hold(counts, f"clients upload {part}, and no value of it changes the state")
        fed.state = after


def _moved(update: Update, part: str) -> Update:
    moved = {k: t + 0.1 * t.abs().mean() + 0.1 for k, t in select(update.tensors, {part}).items()}
    return replace(update, tensors={**update.tensors, **moved})


def order_does_not_matter(case: Case) -> None:
    """Clients in another order give the same models, up to rounding."""
    one, other = case.federation(), case.federation()
    one.step(EVERYBODY)
    other.step((3, 1, 0, 2))
    most = max(1e-6, torch.finfo(case.wire).eps if case.wire != torch.float32 else 0)
    for client in one.clients:
        error = worst(other.effective(client), one.effective(client))
        hold(
            error < most,
            f"permuted clients change {client.id}'s model by {error:.1e}, where rounding "
            f"explains {most:.0e}: their order decides something, or a hook computes in less",
        )


def weights_matter(case: Case) -> None:
    """Uneven weights give another state than even ones, wherever something is shared."""
    if not case.weighted:
        return
    one, other = case.federation(), case.federation()
    one.step((0, 1), (1.0, 1.0))
    other.step((0, 1), (1.0, 3.0))
    changed = any(not torch.equal(t, other.state[k]) for k, t in one.state.items())
    shares = bool(one.updates[0].tensors)
    hold(changed or not shares, "update.weight changes nothing; weighted=False if that is meant")


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
        mean.add(placed(fed.strategy, unknown, before, fed.round()), unknown.weight)
    close(merge(before, mean.result()), fed.state)


def central_privacy_bounds_each_client(case: Case) -> None:
    """Under central privacy a client's update counts with a change of norm C at most, whatever
    `place` makes of it, and is placed the same whoever else was placed before it."""
    if not is_linear(case.strategy):
        return
    fed, clip = case.federation(), 0.01
    fed.step()
    fed.step()
    round = fed.round()
    start = select(fed.before, sends(fed.strategy, round, fed.base.parts))

    def counted(update: Update) -> Tensors:
        return placed(fed.strategy, replace(update, weight=1.0), fed.before, round, start, clip)

    first = {u.client.id: counted(u) for u in fed.updates}
    for u in reversed(fed.updates):
        own = first[u.client.id]
        same(counted(u), own, "placed after other updates than before, an update differs in")
        norm = math.hypot(*(float((t.double() - start[k]).norm()) for k, t in own.items()))
        hold(norm <= clip * (1 + 1e-4), f"an update counts with the norm {norm:.3g}, C is {clip}")


def a_run_goes_on_from_its_checkpoint(case: Case) -> None:
    """The state through safetensors and back gives the next rounds to the bit, and draws come from
    seeded streams: no global random generator moves."""
    before = generators()
    one, other = case.federation(), case.federation()
    for fed in (one, other):
        fed.step((0, 1, 3))
    other.state = load(save(copies(other.state)))
    other.strategy = _again(case.strategy)
    for fed in (one, other):
        fed.step((1, 2))
    same(one.state, other.state, "after a restart differs")
    hold(generators() == before, "draws move a global random generator")


def what_stays_is_the_clients_own(case: Case) -> None:
    """Parts that are trained and not shared differ between clients, and are to the bit what they
    were after rounds that a client sits out."""
    own = stays(case.strategy) & case.base.parts
    fed = case.federation()
    fed.step()
    fed.step()
    kept = {id: copies(t) for id, t in fed.kept.items()}
    fed.step((0, 1))
    absent = fed.clients[3]
    held = select(fed.local(absent, fed.round()), own)
    same(held, select(kept[absent.id], own), "what stays changed while its client was away:")
    for name in held:
        hold(
            not torch.equal(kept["client-2"][name], kept["client-3"][name]),
            f"{name} stays with clients and is the same on two of them",
        )


def cost_counts_what_is_sent(case: Case) -> None:
    """`fedlora cost` runs the method's hooks on tensors without values, and what it counts is as
    much as is really sent, or more where that depends on values."""
    fed = case.federation()
    base = cast(Base, Shadow(case.kind, head=case.head))
    rehearsal = Rehearsal(case.strategy, base, fed.base.parts)
    fed.step()
    counted = rehearsal.played(fed.clients, Round(1, wire=case.wire), Round(2, wire=case.wire))
    first = {id: b.up for id, b in fed.bytes.items()}
    fed.step()
    for client, one in zip(fed.clients, counted, strict=True):
        down, up = fed.bytes[client.id].down, first[client.id]
        hold(up <= fed.nbytes(one.up), f"uploads {up} bytes, of which cost counts fewer")
        if not rehearsal.notes:
            most = fed.nbytes(one.later)
            hold(down <= most, f"sends {down} bytes, of which cost counts {most}")


def the_equation_holds(case: Case) -> None:
    """What the author states is what comes out: exactness, or the expected state, in float64."""
    if case.wire != torch.float32 or (not case.exact and case.expected is None):
        return
    fed = case.federation()
    for participants in COME_AND_GO:
        before = fed.state
        fed.step(participants)
        if case.expected is not None:
            updates = [replace(u, tensors=double(u.tensors)) for u in fed.updates]
            close(fed.state, case.expected(double(before), updates))
        if case.exact:
            truth = fed.mean_of_products()
            models = {"the server": fed.server()} | {c.id: fed.effective(c) for c in fed.clients}
            for owner, model in models.items():
                error = worst(model, truth)
                hold(error < 1e-6, f"{owner} is off the mean of the products by {error:.1e}")


PROMISES: tuple[Promise, ...] = (
    settings_are_kept,
    defaults_exist,
    downloads_are_what_is_lacking,
    a_run_goes_on_from_its_checkpoint,
    what_is_uploaded_counts,
    order_does_not_matter,
    weights_matter,
    folding_is_aggregating,
    central_privacy_bounds_each_client,
    what_stays_is_the_clients_own,
    cost_counts_what_is_sent,
    the_equation_holds,
)
