"""A finished run, put together again: the global model, or one client's own."""

import logging

from clients.store import Missing, Store
from fedlora import settings
from fedlora.errors import UserError
from fedlora.resident import Resident
from fedlora.runs import Checkpoint, RunDir
from fedlora.strategy import Round, stays
from server import origin
from server.roster import Roster
from server.rounds import asked_of
from server.score import load_global
from server.shared import Shared
from server.use import Use
from strategies import load

log = logging.getLogger("fedlora.run")

# Settings of data that say how rows are read, and not which.
READING = {"max_length", "packing", "learn"}


def made(run: RunDir, given: settings.Tree | None = None, rows: bool = False) -> Resident:
    """The base and data of a run's own configuration with what is `given` laid over it; nothing
    that was learnt is in it yet.

    Args:
        rows: whether the run's own test rows will be scored. Without them none are read.

    Raises:
        UserError: the base, or such rows, are not those that the run began with.
    """
    tree, given = settings.read(run.path / "config.toml", []), given or {}
    own, _ = settings.resolve(tree, load)
    config, strategy = settings.resolve(settings.merged(tree, given), load)
    begun, data = origin.read(run.path), given.get("data", {})
    labels = begun.labels if begun and "labels" not in data else None
    if labels:  # those of the model, whatever rows there are, and in its order
        update = {"data": config.data.model_copy(update={"labels": labels})}
        config = config.model_copy(update=update)
    resident = Resident(config, strategy, labels=labels)
    kinds, otherwise = [], origin.ANEW
    if rows and not data.keys() - READING:
        kinds, otherwise = ["test"], "or score other rows on purpose: --data NAME|FILE"
    for note in origin.check(run.path, resident, own, otherwise, kinds):
        log.warning("%s", note)
    return resident


def loaded(run: RunDir, client: str | None) -> tuple[Resident, int]:
    """As `made`, with what `learn` puts into it, to leave. Raises UserError where that is nothing:
    no client's update was used."""
    resident = made(run)
    checkpoint = latest(run)
    if checkpoint.round and Use.read(checkpoint.memory).nothing:
        raise UserError(
            f"no client's update was used in any round of {run.path.name}, so there is nothing "
            f"trained in it: {run.path / 'log.txt'} says why"
        )
    if client is None and (own := _apart(resident)):
        log.warning(
            "%s leaves %s with each client: this is what all share, and not what a client's own "
            "model has learnt; name one with --client for that",
            resident.config.strategy["name"],
            own,
        )
    return resident, learn(resident, run, client)


def learn(resident: Resident, run: RunDir, client: str | None) -> int:
    """The global model of the last whole round, or a client's own, into the resident adapter;
    which round that is. Raises UserError where there is none yet, or no such client."""
    checkpoint = latest(run)
    if client is None:
        load_global(resident, checkpoint.state, checkpoint.round)
    else:
        load_client(resident, run, checkpoint, client)
    return checkpoint.round


def speak(resident: Resident, run: RunDir, client: str | None) -> int:
    """As `learn`, of a model that is somebody's: where parts stay with clients, there is no global
    one once these differ.

    Raises:
        UserError: as `learn`, and where a client has to be named.
    """
    round = learn(resident, run, client)
    if round and Use.read(latest(run).memory).nothing:
        log.warning("no client's update was used in any round: this is the base, untrained")
    if client is None and round and (own := _apart(resident)):
        known = ", ".join(sorted(_roster(run, latest(run)).members)[:20])
        raise UserError(
            f"{resident.config.strategy['name']} leaves {own} with each client, "
            f"so that the run has no whole global model: name a client with --client (of {known})"
        )
    return round


def _apart(resident: Resident) -> str:
    """The parts that stay with each client, in words."""
    return ", ".join(sorted(stays(resident.strategy) & resident.adapter.parts))


def latest(run: RunDir) -> Checkpoint:
    """The last whole checkpoint. Raises UserError where there is none yet."""
    checkpoint, _ = run.last()
    if checkpoint is None:
        raise UserError(f"{run.path} has no whole checkpoint yet")
    return checkpoint


def load_client(resident: Resident, run: RunDir, checkpoint: Checkpoint, id: str) -> None:
    """One client's own model, with the parts that stayed with it, into the resident adapter."""
    roster = _roster(run, checkpoint)
    if id not in roster.members:
        known = ", ".join(sorted(roster.members)[:20])
        raise UserError(f"the run has no client '{id}' (clients: {known})")
    member = roster.members[id]
    shared = Shared(resident.strategy.trained & resident.adapter.parts)
    shared.begin(checkpoint.state, _round(resident))
    view = asked_of(resident.strategy, checkpoint.state, member, id, _round(resident))
    tensors = {k: shared.assigned(k, t) for k, t in view.items()}
    if member.own:
        try:
            store = Store(run.path / "clients", run.experiment, id)
            tensors |= store.own(member.own)
        except Missing as e:
            raise UserError(
                f"what stayed with client {id} is not in {run.path}: {e}; export it where it is"
            ) from None
    resident.load(tensors, member.scale)


def _roster(run: RunDir, checkpoint: Checkpoint) -> Roster:
    """Who took part. Raises UserError where that stayed on the server."""
    if "roster" not in checkpoint.memory:
        raise UserError(
            f"who the clients are is not in {run.path}: under central privacy that stays on the "
            "server"
        )
    roster = Roster()
    roster.load(checkpoint.memory["roster"])
    return roster


def _round(resident: Resident) -> Round:
    run = resident.config.run
    return Round(run.rounds, "evaluate", run.seed, run.wire_dtype)
