"""What a client does when its rows are private: its budget, DP-SGD within it, noised scores.

    <store>/privacy.json            what training has spent of the run's budget
    <store>/privacy-heldout.json    what scores have spent of the held-out rows' own

Spending is on disk before anything is drawn from it, and is never rolled back. A release is made
once: its secret is in memory alone, and what it gives is kept as the reply to its order. On a node
it is paid for from its owner's account too, which holds over all runs.
"""

from collections.abc import Generator, Sequence

from clients.account import LEDGERS, Account
from clients.asked import Fit, Fitted, Noise
from clients.store import Store
from fedlora.config import Config
from fedlora.config.privacy import LARGEST_NOISE
from fedlora.errors import UserError
from fedlora.orders import Order
from fedlora.privacy import plan
from fedlora.privacy.accounting import NOISELESS, Mechanism
from fedlora.privacy.budget import Spent, afford, epsilon, pay
from fedlora.privacy.entropy import normals
from fedlora.privacy.ledger import Ledger
from fedlora.privacy.training import Private
from fedlora.resident import Resident
from fedlora.stacking import Member
from fedlora.tasks import Score
from fedlora.tensors import Tensors


def train(
    resident: Resident,
    store: Store,
    order: Order,
    member: Member,
    trains: set[str],
    account: Account | None = None,
) -> Generator[Fit, Fitted, tuple[Tensors, dict[str, float]]]:
    """One round of DP-SGD. Returns the trained tensors and what may be told of it: the budget spent
    so far, and noised statistics of gradients.

    Raises Spent where the round would go past the target.
    """
    config, rows = _planned(resident.config, resident, account), len(member.encoded)
    ledger, steps = Ledger(store.path / LEDGERS["train"]), config.train.steps_a_round(rows)
    if ledger.mechanism is None:
        rounds = _between(order.planned, 1, config.run.rounds, "planned")
        made = plan.client_mechanism(config, rows, rounds)
        if order.spent and not ledger.path.exists():
            ledger.adopt([_believed(order.spent, made.sample_rate, config.run.rounds * steps)])
        ledger.plan(made)
    mechanism = ledger.mechanism
    assert mechanism is not None
    secret = _paid(resident, order, ledger, "train", steps, account)
    fitted = yield Fit(member, trains, Noise(mechanism, secret))
    found = fitted.told
    assert isinstance(found, Private)
    told = {
        "epsilon": epsilon(ledger, ledger.history, config.privacy),
        "delta": mechanism.delta,
        "noise_multiplier": mechanism.noise_multiplier,
        "sample_rate": mechanism.sample_rate,
        "steps": float(sum(steps for _, _, steps in ledger.history)),
    }
    if found.clipped is not None and found.gradient_norm is not None:
        told |= {"clipped": found.clipped, "gradient_norm": found.gradient_norm}
    return fitted.tensors, told


def score(
    resident: Resident, store: Store, order: Order, own: Score, account: Account | None = None
) -> dict[str, float]:
    """The share of right answers on held-out rows, from a noised count; nothing where no ε is set
    to take the noise from, or where it is spent."""
    config = _planned(resident.config, resident, account)
    ledger = Ledger(store.path / LEDGERS["heldout"])
    mechanism: Mechanism | None = ledger.mechanism
    if mechanism is None:
        rows = len(resident.encoded(order.client, "train"))
        rounds = _between(order.planned, 1, config.run.rounds, "planned")
        mechanism = plan.score_mechanism(config, rows, rounds)
        if mechanism is None:
            return {}
        ledger.plan(mechanism)
    try:
        secret = _paid(resident, order, ledger, "heldout", 1, account)
    except Spent:
        return {}
    right = own.score * own.rows + mechanism.noise_multiplier * float(normals((), secret, "score"))
    return {"score": min(max(right / own.rows, 0.0), 1.0), "rows": float(own.rows)}


def _paid(
    resident: Resident,
    order: Order,
    ledger: Ledger,
    kind: str,
    steps: int,
    account: Account | None,
) -> bytes:
    """The secret of one release, paid for from the owner's account and then from the run's budget.
    Raises Spent where one of them has not enough left."""
    privacy, mechanism = resident.config.privacy, ledger.mechanism
    assert mechanism is not None
    if account:
        account.pin(order.experiment, resident.division(order.client))
        afford(ledger, privacy, steps)  # else the account would pay for nothing
        step = (mechanism.noise_multiplier, mechanism.sample_rate, steps)
        account.spend(order.experiment, kind, step, ledger.history, _rows(resident, order.client))
    return pay(ledger, privacy, steps, order.purpose, order.client, order.round)


def _planned(config: Config, resident: Resident, account: Account | None) -> Config:
    """The run's configuration, whose noise is solved for the owner's δ where that is smaller."""
    if account is None or account.owner.epsilon is None:
        return config
    client = resident.node.client
    delta = account.delta(_rows(resident, client))
    asked = config.privacy.delta or 1 / (2 * len(resident.federation.trained[client]))
    privacy = config.privacy.model_copy(update={"delta": min(delta, asked)})
    return config.model_copy(update={"privacy": privacy})


def _rows(resident: Resident, client: str) -> int:
    """All rows of a client: under an owner's ε no run may use a part of them."""
    federation = resident.federation
    return len(federation.trained[client]) + len(federation.held[client])


def _believed(spent: Sequence[float], q: float, most: int) -> tuple[float, float, int]:
    """What the server says that this client spent in this run, whose account is missing. Raises
    UserError where it cannot be: another q than this client's, or more steps than the run has."""
    sigma, said, steps = spent
    if not (NOISELESS <= sigma <= LARGEST_NOISE and said == q):
        raise UserError("the order says that this client spent what it never can have")
    return sigma, q, int(_between(steps, 0, most, "spent"))


def _between(value: float, low: int, high: int, name: str) -> int:
    """A number of an order that is to be whole and within bounds. Raises UserError."""
    if not (low <= value <= high and value == int(value)):
        raise UserError(f"the order's {name} = {value:g} is no number from {low} to {high}")
    return int(value)
