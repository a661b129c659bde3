"""Before a client may take part: who it is, whether it agrees and fits; then it is a member."""

from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

import fedlora
from fedlora import guard
from fedlora.agreement import differences
from fedlora.errors import UserError
from fedlora.privacy import plan
from fedlora.resident import Resident
from fedlora.strategy import Round
from fedlora.untrusted import named, plain
from server.identity import Claim
from server.roster import Member, Roster

# Bytes of an id in a file's name: with update- and .safetensors around it, a name that travels
# (`server.delivery`) has up to 200.
LONGEST = 181
MOST = 10**9  # training rows that a client may say it has


def known(resident: Resident) -> dict[str, Any]:
    """What the run has, and every node must have."""
    return {"version": fedlora.__version__, **resident.identity}


def unnamed(id: str) -> str:
    """Why nobody can be called so, or ""."""
    if named(id) and len(quote(id, safe="")) <= LONGEST:
        return ""
    return (
        "is not 1 to 128 printable characters, without spaces around, that fit into a file's name"
    )


def check_names(ids: Iterable[str]) -> None:
    """Raises UserError where the data have a client that could not take part."""
    for id in ids:
        if why := unnamed(id):
            raise UserError(
                f"the client '{plain(id)}' of the data {why}: rename it in the column data.by, or "
                "its file"
            )


def refusal(facts: Mapping[str, Any], resident: Resident) -> str:
    """Why a node that says this of itself may not take part, or ""."""
    id, examples, rank = (facts.get(k) for k in ("client", "examples", "rank"))
    full = resident.adapter.scaling.rank
    if not (isinstance(id, str) and id and type(examples) is int and type(rank) is int):
        return "it does not say its client id, its examples and its rank"
    if why := unnamed(id):
        return f"its client id {why}"
    if wrong := differences(known(resident), facts):
        return "; ".join(wrong)
    if examples < 1:
        return "it has no rows to train on"
    if examples > MOST:
        return f"it says that it has {examples} rows to train on"
    if unfit := plan.refusal(resident.config, examples):
        return unfit
    if not 0 <= rank <= full:
        return f"its rank {rank} is not within the run's adapter.rank = {full}"
    if rank not in (0, full) and not resident.strategy.mixed_ranks:
        name = type(resident.strategy).__name__
        return f"its rank is {rank}, but {name} needs adapter.rank = {full} on every node"
    return ""


def taken(id: str, own: Claim, before: Claim | None, listed: Mapping[str, str] | None) -> str:
    """Why a node may not be this client, or "".

    Args:
        before: of whoever is this client, or was it when it became a member.
        listed: the operator's list, if there is one.
    """
    if listed is not None:
        if id not in listed:
            return "the operator's list of clients and keys does not have it"
        return "" if listed[id] == own.holder else "its key is not the one that the operator listed"
    if before is None or before.same_owner(own):
        return ""
    return (
        "another node is that client already, and this one neither has its key nor its proof: give "
        "each node its own id"
    )


def join(roster: Roster, id: str, facts: Mapping[str, Any], own: Claim, resident: Resident) -> None:
    """Enter a client that was not refused; one that was here before keeps its rank."""
    strategy, scaling = resident.strategy, resident.adapter.scaling
    if member := roster.members.get(id):
        member.examples = facts["examples"]
        member.holder, member.proof = own.holder, own.proof or member.proof
        return
    index = len(roster.members)
    start = Round(0, seed=resident.config.run.seed)
    rank = facts["rank"] or guard.rank(strategy, scaling.rank, index, id, start)
    scale = guard.scale(strategy, scaling, rank)
    roster.members[id] = Member(
        index, facts["examples"], rank, scale, holder=own.holder, proof=own.proof
    )
