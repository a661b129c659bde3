"""What a client does when its rows are private: its budget, DP-SGD within it, noised scores.

    <store>/privacy.json            what training has spent of the budget
    <store>/privacy-heldout.json    what scores have spent of the held-out rows' own

Spending is on disk before anything is drawn from it, and is never rolled back.
"""

import hashlib
import json

import torch

from clients.store import Store
from fedlora.orders import Order
from fedlora.privacy import plan
from fedlora.privacy.accounting import Mechanism
from fedlora.privacy.budget import Spent, epsilon, pay
from fedlora.privacy.entropy import generator
from fedlora.privacy.ledger import Ledger
from fedlora.privacy.training import train as fit
from fedlora.resident import Resident
from fedlora.tasks import Score
from fedlora.tensors import Tensors
from fedlora.views import fingerprint, manifest


def train(
    resident: Resident, store: Store, order: Order, tensors: Tensors, trains: set[str]
) -> dict[str, float]:
    """One round of DP-SGD on the loaded adapter. Returns what may be told of it: the budget spent
    so far, and noised statistics of gradients.

    Raises Spent where the round would go past the target.
    """
    config, encoded = resident.config, resident.encoded(order.client, "train")
    ledger = Ledger(store.path / "privacy.json")
    if order.spent:
        sigma, q, known = order.spent
        ledger.adopt([(sigma, q, int(known))])
    mechanism = ledger.mechanism or ledger.plan(
        plan.client_mechanism(config, len(encoded), order.planned)
    )
    key = release_key(resident, order, tensors, "train")
    steps = config.train.steps_a_round(len(encoded))
    release = (order.purpose, order.client, order.round)
    secret = pay(ledger, config.privacy, key, steps, *release)
    found = fit(
        resident.task,
        resident.adapter,
        trains,
        encoded,
        config.train,
        config.privacy,
        mechanism,
        secret,
    )
    told = {
        "epsilon": epsilon(ledger, ledger.history, config.privacy),
        "delta": mechanism.delta,
        "noise_multiplier": mechanism.noise_multiplier,
        "sample_rate": mechanism.sample_rate,
        "steps": float(sum(steps for _, _, steps in ledger.history)),
    }
    if found.clipped is not None and found.gradient_norm is not None:
        told |= {"clipped": found.clipped, "gradient_norm": found.gradient_norm}
    return told


def score(
    resident: Resident, store: Store, order: Order, tensors: Tensors, own: Score
) -> dict[str, float]:
    """The share of right answers on held-out rows, from a noised count; nothing where no ε is set
    to take the noise from, or where it is spent."""
    rows = len(resident.encoded(order.client, "train"))
    ledger = Ledger(store.path / "privacy-heldout.json")
    mechanism: Mechanism | None = ledger.mechanism
    if mechanism is None:
        mechanism = plan.score_mechanism(resident.config, rows, order.planned)
        if mechanism is None:
            return {}
        ledger.plan(mechanism)
    try:
        key = release_key(resident, order, tensors, "heldout")
        release = (order.purpose, order.client, order.round)
        secret = pay(ledger, resident.config.privacy, key, 1, *release)
    except Spent:
        return {}
    draw = generator(secret, "score")
    noise = float(torch.randn((), generator=draw, dtype=torch.float64))
    right = own.score * own.rows + mechanism.noise_multiplier * noise
    return {"score": min(max(right / own.rows, 0.0), 1.0), "rows": float(own.rows)}


def release_key(resident: Resident, order: Order, tensors: Tensors, split: str) -> str:
    """A digest of all that a release depends on but its noise: the adapter, the rows, and how they
    are used. Only where nothing differs may the same noise be used again: on two releases that
    differ it would show their difference."""
    config = resident.config.model_dump(mode="json", exclude={"run", "simulation"})
    facts = [
        order.purpose,
        order.round,
        order.scale,
        fingerprint(manifest(tensors)),
        resident.rows_digest(order.client, split),
        config,
    ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
