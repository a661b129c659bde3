"""A finished run, put together again: the global model, or one client's own."""

from clients.store import Missing, Store
from fedlora import settings
from fedlora.errors import UserError
from fedlora.resident import Resident
from fedlora.runs import Checkpoint, RunDir
from fedlora.strategy import Round, stays
from server.roster import Roster
from server.rounds import asked_of
from server.score import load_global
from server.shared import Shared
from strategies import load


def loaded(
    run: RunDir, client: str | None, given: settings.Tree | None = None, counted: bool = False
) -> tuple[Resident, int]:
    """The model and data of a run's own configuration with what is `given` laid over it, the global
    model or a client's own loaded into it; and the last whole round.

    Args:
        counted: whether what its passes may have, `most`, is to be known: nothing that is loaded
            outlasts the counting.

    Raises:
        UserError: there is no whole round yet, or no such client.
    """
    checkpoint = latest(run)
    tree = settings.merged(settings.read(run.path / "config.toml", []), given or {})
    resident = Resident(*settings.resolve(tree, load))
    if counted:
        _ = resident.most
    if client is None:
        load_global(resident, checkpoint.state, checkpoint.round)
    else:
        load_client(resident, run, checkpoint, client)
    return resident, checkpoint.round


def speaking(
    run: RunDir, client: str | None, given: settings.Tree | None = None, counted: bool = False
) -> tuple[Resident, int]:
    """As `loaded`, of a model that is somebody's: where parts stay with clients, there is no global
    one once these differ.

    Raises:
        UserError: as `loaded`, and where a client has to be named.
    """
    resident, round = loaded(run, client, given, counted)
    if client is None and round and (own := stays(resident.strategy) & resident.adapter.parts):
        known = ", ".join(sorted(_roster(run, latest(run)).members)[:20])
        raise UserError(
            f"{resident.config.strategy['name']} leaves {', '.join(sorted(own))} with each client, "
            f"so that the run has no whole global model: name a client with --client (of {known})"
        )
    return resident, round


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
