"""Before a client may take part: who it is, and whether labels, base and tokenizer agree."""

from collections.abc import Mapping
from typing import Any

import fedlora
from fedlora.errors import UserError
from fedlora.resident import Resident
from fedlora.strategy import Round
from server.roster import Member, Roster


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """What a node has otherwise than the run, in words; empty where it agrees."""
    out = []
    if theirs.get("version") != fedlora.__version__:
        out.append(f"fedlora {theirs.get('version')} in place of {fedlora.__version__}")
    if list(theirs.get("labels", [])) != list(ours["labels"]):
        out.append(f"labels {theirs.get('labels')} in place of {ours['labels']}")
    if theirs.get("base") != ours["base"]:
        out.append("other weights of the base model (model.name, its revision or its files)")
    if theirs.get("tokenizer") != ours["tokenizer"]:
        out.append("another tokenizer")
    return out


def join(roster: Roster, node: int, facts: Mapping[str, Any], resident: Resident) -> None:
    """Enter a client that agrees. Raises UserError for a rank that the method cannot serve."""
    strategy, scaling = resident.strategy, resident.adapter.scaling
    id = str(facts["client"])
    if roster.nodes.get(id, node) != node:
        raise UserError(f"two nodes call themselves client '{id}': give each its own")
    roster.nodes[id] = node
    if id in roster.members:
        roster.members[id].examples = int(facts["examples"])
        return
    index = len(roster.members)
    round = Round(0, seed=resident.config.run.seed)
    rank = int(facts.get("rank", 0)) or strategy.rank(scaling.rank, index, id, round)
    if rank > scaling.rank:
        raise UserError(
            f"client {id} has rank {rank}, above the run's adapter.rank = {scaling.rank}: "
            "lower its rank or raise adapter.rank"
        )
    if rank != scaling.rank and not strategy.mixed_ranks:
        raise UserError(
            f"client {id} has rank {rank}, but {type(strategy).__name__} needs adapter.rank = "
            f"{scaling.rank} on everyone: use fslora, or set adapter.rank={rank}"
        )
    roster.members[id] = Member(index, int(facts["examples"]), rank, strategy.scale(scaling, rank))
