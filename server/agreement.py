"""Before a client may take part: who it is, whether it agrees and fits; then it is a member."""

from collections.abc import Mapping
from typing import Any

import fedlora
from fedlora.agreement import differences
from fedlora.guard import called
from fedlora.privacy import plan
from fedlora.resident import Resident
from fedlora.strategy import Round
from server.roster import Member, Roster


def known(resident: Resident) -> dict[str, Any]:
    """What the run has, and every node must have."""
    return {"version": fedlora.__version__, **resident.identity}


def refusal(roster: Roster, node: int, facts: Mapping[str, Any], resident: Resident) -> str:
    """Why a node that says this of itself may not take part, or ""."""
    id, examples, rank = (facts.get(k) for k in ("client", "examples", "rank"))
    full = resident.adapter.scaling.rank
    if not (isinstance(id, str) and id and isinstance(examples, int) and isinstance(rank, int)):
        return "it does not say its client id, its examples and its rank"
    if wrong := differences(known(resident), facts):
        return "; ".join(wrong)
    if roster.nodes.get(id, node) != node:
        return "another node is that client already: give each node its own id"
    if examples < 1:
        return "it has no rows to train on"
    if unfit := plan.refusal(resident.config, examples):
        return unfit
    if not 0 <= rank <= full:
        return f"its rank {rank} is not within the run's adapter.rank = {full}"
    if rank not in (0, full) and not resident.strategy.mixed_ranks:
        name = type(resident.strategy).__name__
        return f"its rank is {rank}, but {name} needs adapter.rank = {full} on every node"
    return ""


def join(roster: Roster, id: str, facts: Mapping[str, Any], resident: Resident) -> None:
    """Enter a client that was not refused; one that was here before keeps its rank."""
    strategy, scaling = resident.strategy, resident.adapter.scaling
    if id in roster.members:
        roster.members[id].examples = facts["examples"]
        return
    index = len(roster.members)
    start = Round(0, seed=resident.config.run.seed)
    rank = facts["rank"] or called(strategy, "rank", scaling.rank, index, id, start)
    scale = called(strategy, "scale", scaling, rank)
    roster.members[id] = Member(index, facts["examples"], rank, scale)
