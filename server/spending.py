"""Local privacy as the server hears of it: what clients say they spent, and what they may have
spent without saying. It is never understated: what is not known is no bound (None), and not 0."""

import math
from collections.abc import Mapping

from fedlora.config import Config
from fedlora.config.privacy import LARGEST_NOISE, Privacy
from fedlora.errors import UserError
from fedlora.privacy import accounting, plan
from fedlora.runs import Row
from server.roster import Member, Roster

# Of two accounts of one client, that of each which stands for the larger ε.
WORSE = {"delta": min, "noise_multiplier": min, "sample_rate": max, "steps": max}
STATISTICS = ("clipped", "gradient_norm")
SLACK = 1e-6  # relative; two machines may round ε differently


def note(member: Member, metrics: Mapping[str, float], status: str, config: Config) -> None:
    """Remember what a client said of its budget in answer to an order to train, whether its update
    is used or not. One that answers and does not say its ε, or one that does not follow from the
    rest, has no known one; one that fails may have spent a round's, unless it says that it sits out
    for want of budget.

    An account never shrinks: a client may have lost its own, or an older copy is in its place.
    Where it says less than it said before, the worse of both counts; and rounds in which it was
    asked and said nothing are unheard until the steps that it says cover them.

    Args:
        metrics: possible ones, see `server.metrics`; an infinite ε does not travel.
        status: "ok" where it sent an update, else its own word, "" where it said nothing.
    """
    if status == "spent":
        return
    told = {k: metrics[k] for k in WORSE if k in metrics} if status == "ok" else {}
    positive = all(told.get(k, 0.0) > 0 for k in ("delta", "sample_rate", "steps"))
    if not positive or "noise_multiplier" not in told:
        member.unheard += 1
        if status == "ok":
            member.spent = {**member.spent, "epsilon": None}
        return
    before, round = member.spent, config.train.steps_a_round(member.examples)
    account = {k: WORSE[k](t, t if (b := before.get(k)) is None else b) for k, t in told.items()}
    due = (before.get("steps") or 0.0) + (member.unheard + 1) * round
    member.unheard = max(0, math.ceil((due - account["steps"]) / round))
    epsilon = _said(metrics.get("epsilon"), told, config.privacy)
    if epsilon is not None and account != told:
        bound = _epsilon(account, 0, config.privacy)
        epsilon = None if bound is None else max(epsilon, bound)
    member.spent = {"epsilon": epsilon, **account}


def told(member: Member, metrics: Mapping[str, float]) -> Row:
    """A client's fields in a round's metrics: its budget so far, and the round's statistics. Empty
    for a client that never trained privately."""
    if not member.spent:
        return {}
    known: Row = {**member.spent, **{k: metrics.get(k) for k in STATISTICS}}
    return known | {"steps": int(known["steps"]) if "steps" in known else None}


def history(member: Member, config: Config, planned: int) -> list[float]:
    """σ, q and steps that a client has spent at most, for one that lost its own account: as it said
    them, and what it was asked for since; the plan's σ and q where it never said any. Empty where
    it was never asked. No more than the run's steps, which is all that it believes.

    Args:
        planned: the rounds that it is told to plan for.
    """
    round = config.train.steps_a_round(member.examples)
    sigma, rate, steps = (member.spent.get(k) for k in ("noise_multiplier", "sample_rate", "steps"))
    if sigma is None or rate is None:
        if not member.unheard:
            return []
        try:
            made = plan.client_mechanism(config, member.examples, planned)
        except UserError:  # as for the client itself, which can train nothing then
            return []
        sigma, rate = made.noise_multiplier, made.sample_rate
    most = (steps or 0.0) + member.unheard * round
    # What a client believes; below NOISELESS ε is infinite anyway.
    sigma = min(max(sigma, accounting.NOISELESS), LARGEST_NOISE)
    return [sigma, rate, math.floor(min(most, config.run.rounds * round))]


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
    found = _epsilon(member.spent, more, config.privacy)
    return None if found is None else max(said or 0.0, found)


def _said(epsilon: float | None, told: Mapping[str, float], privacy: Privacy) -> float | None:
    """A client's own ε, None where it is less than what follows from the rest. The numerical
    accountant takes a second, and is below the other: it is taken at its word."""
    if epsilon is None or privacy.accountant != "rdp":
        return epsilon
    follows = _epsilon(told, 0, privacy)
    return epsilon if follows is not None and epsilon >= follows * (1 - SLACK) else None


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
