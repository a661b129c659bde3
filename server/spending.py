"""Local privacy as the server hears of it: what clients say they spent, and what they may have
spent without saying. It is never understated: what is not known is no bound (None), and not 0."""

import math
from collections.abc import Mapping

from fedlora.config import Config
from fedlora.config.privacy import Privacy
from fedlora.errors import UserError
from fedlora.privacy import accounting
from fedlora.runs import Row
from server.roster import Member, Roster

MECHANISM = ("delta", "noise_multiplier", "sample_rate", "steps")
STATISTICS = ("clipped", "gradient_norm")
SLACK = 1e-6  # relative; two machines may round ε differently


def note(member: Member, metrics: Mapping[str, float], status: str, privacy: Privacy) -> None:
    """Remember what a client said of its budget in answer to an order to train, whether its update
    is used or not. One that answers and does not say its ε, or one that does not follow from the
    rest, has no known one; one that fails may have spent a round's, unless it says that it sits out
    for want of budget.

    Args:
        metrics: possible ones, see `server.metrics`; an infinite ε does not travel.
        status: "ok" where it sent an update, else its own word, "" where it said nothing.
    """
    if status == "spent":
        return
    if status != "ok":
        member.unheard += 1
        return
    member.unheard = 0
    told = {k: metrics[k] for k in MECHANISM if k in metrics}
    positive = all(told.get(k, 0.0) > 0 for k in ("delta", "sample_rate", "steps"))
    if not positive or "noise_multiplier" not in told:
        member.spent = {**member.spent, "epsilon": None}
        return
    epsilon = metrics.get("epsilon")
    # The numerical accountant takes a second, and is below the other: it is taken at its word.
    if epsilon is not None and privacy.accountant == "rdp":
        follows = _epsilon(told, 0, privacy)
        epsilon = epsilon if follows is not None and epsilon >= follows * (1 - SLACK) else None
    member.spent = {"epsilon": epsilon, **told}


def told(member: Member, metrics: Mapping[str, float]) -> Row:
    """A client's fields in a round's metrics: its budget so far, and the round's statistics. Empty
    for a client that never trained privately."""
    if not member.spent:
        return {}
    known: Row = {**member.spent, **{k: metrics.get(k) for k in STATISTICS}}
    return known | {"steps": int(known["steps"]) if "steps" in known else None}


def history(member: Member) -> list[float]:
    """σ, q and steps as a client said them last, for one that lost its own account; else empty."""
    known = (member.spent.get(k) for k in ("noise_multiplier", "sample_rate", "steps"))
    found = [x for x in known if x is not None]
    return found if len(found) == 3 else []


def largest(roster: Roster, config: Config) -> Row:
    """What holds for every client so far: the largest ε, None where there is no bound on some
    client's, and the largest δ that any of them is at."""
    spenders = [m for m in roster.members.values() if m.spent or m.unheard]
    if not spenders:
        return {"epsilon": 0.0, "delta": None}
    bounds = [_bound(m, config) for m in spenders]
    deltas = [d for m in spenders if (d := m.spent.get("delta")) is not None]
    known = [b for b in bounds if b is not None]
    return {
        "epsilon": max(known) if len(known) == len(bounds) else None,
        "delta": max(deltas, default=None),
    }


def _bound(member: Member, config: Config) -> float | None:
    """What a client has spent at most: what it said, or more where it was asked since and said
    nothing. A client of this library stops at the target, if there is one."""
    said = member.spent.get("epsilon")
    if not member.unheard:
        return said
    if member.spent and said is None:
        return None
    if (target := config.privacy.epsilon) is not None:
        return max(said or 0.0, target)
    if not member.spent:
        return None
    more = member.unheard * config.train.steps_a_round(member.examples)
    return _epsilon(member.spent, more, config.privacy)


def _epsilon(told: Mapping[str, float | None], more: int, privacy: Privacy) -> float | None:
    """ε of what a client told and so many steps more; None where it is infinite or unknown."""
    sigma, rate, steps, delta = (
        float(told[k] or 0.0) for k in ("noise_multiplier", "sample_rate", "steps", "delta")
    )
    try:
        found = accounting.epsilon([(sigma, rate, int(steps) + more)], delta, privacy.accountant)
    except (UserError, ArithmeticError, ValueError):  # the accountant has its limits
        return None
    return found if math.isfinite(found) else None
