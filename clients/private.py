"""What a client does when its rows are private: its budget, DP-SGD within it, noised scores.

    <store>/privacy.json            what training has spent of the budget
    <store>/privacy-heldout.json    what scores have spent of the held-out rows' own
    <store>/rows.txt                which rows those are, under an owner's cap

Spending is on disk before anything is drawn from it, and is never rolled back. Where a node's owner
sets a cap, what all runs spent of these rows stays below it.
"""

import hashlib
import json
from collections.abc import Generator

import torch

from clients.passes import Fit, Fitted, Noise
from clients.store import Store
from fedlora import files
from fedlora.errors import UserError
from fedlora.orders import Order
from fedlora.privacy import plan
from fedlora.privacy.accounting import History, Mechanism
from fedlora.privacy.budget import Spent, epsilon, pay
from fedlora.privacy.entropy import generator
from fedlora.privacy.ledger import Ledger
from fedlora.privacy.training import Private
from fedlora.resident import Resident
from fedlora.stacking import Member
from fedlora.tasks import Score
from fedlora.tensors import Tensors
from fedlora.views import fingerprint, manifest

TRAINING, SCORES = "privacy.json", "privacy-heldout.json"


def train(
    resident: Resident,
    store: Store,
    order: Order,
    tensors: Tensors,
    member: Member,
    trains: set[str],
    peers: tuple[str, ...] = (),
) -> Generator[Fit, Fitted, tuple[Tensors, dict[str, float]]]:
    """One round of DP-SGD. Returns the trained tensors and what may be told of it: the budget spent
    so far, and noised statistics of gradients.

    Raises Spent where the round would go past the target.
    """
    config, encoded = resident.config, member.encoded
    ledger = Ledger(store.path / TRAINING)
    if order.spent:
        sigma, q, known = order.spent
        ledger.adopt([(sigma, q, int(known))])
    mechanism = ledger.mechanism or ledger.plan(
        plan.client_mechanism(config, len(encoded), order.planned)
    )
    key = release_key(resident, order, tensors, "train", peers)
    steps = config.train.steps_a_round(len(encoded))
    release = (order.purpose, order.client, order.round)
    _afford(resident, store, ledger, key, steps)
    secret = pay(ledger, config.privacy, key, steps, *release)
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
    resident: Resident,
    store: Store,
    order: Order,
    tensors: Tensors,
    own: Score,
    peers: tuple[str, ...] = (),
) -> dict[str, float]:
    """The share of right answers on held-out rows, from a noised count; nothing where no ε is set
    to take the noise from, or where it is spent."""
    rows = len(resident.encoded(order.client, "train"))
    ledger = Ledger(store.path / SCORES)
    mechanism: Mechanism | None = ledger.mechanism
    if mechanism is None:
        mechanism = plan.score_mechanism(resident.config, rows, order.planned)
        if mechanism is None:
            return {}
        ledger.plan(mechanism)
    try:
        key = release_key(resident, order, tensors, "heldout", peers)
        release = (order.purpose, order.client, order.round)
        _afford(resident, store, ledger, key, 1)
        secret = pay(ledger, resident.config.privacy, key, 1, *release)
    except Spent:
        return {}
    draw = generator(secret, "score")
    noise = float(torch.randn((), generator=draw, dtype=torch.float64))
    right = own.score * own.rows + mechanism.noise_multiplier * noise
    return {"score": min(max(right / own.rows, 0.0), 1.0), "rows": float(own.rows)}


def _afford(resident: Resident, store: Store, ledger: Ledger, key: str, steps: int) -> None:
    """Raises Spent where this release would take all runs together past the owner's cap, at the δ
    of this run; a repeat costs nothing.

    A run holds out rows that another trained on, so other runs count with both of their ledgers; in
    one run no row is in both, which is made sure of.
    """
    cap, privacy = resident.node.cap, resident.config.privacy
    if cap is None or ledger.repeats(key):
        return
    _pin(resident, store)
    others: History = []
    for run in sorted(store.path.parent.parent.iterdir()):  # a glob passes over what it cannot read
        if run.name.startswith("run-") and run != store.path.parent:
            for name in (TRAINING, SCORES):
                others += Ledger(run / store.path.name / name).history
    after = epsilon(ledger, others + ledger.after(steps), privacy)
    if after > cap:
        spent = epsilon(ledger, others + ledger.history, privacy)
        raise Spent(
            f"this node's owner allows ε = {cap:g} over all runs on its rows: {spent:.3g} is "
            f"spent, and another release would take it to {after:.3g}"
        )


def _pin(resident: Resident, store: Store) -> None:
    """A run keeps the rows, and their division, that it began with: another seed would hold out
    what was trained on. Raises UserError where they changed."""
    path, client = store.path / "rows.txt", resident.node.client
    now = "\n".join(resident.rows_digest(client, split) for split in ("train", "heldout"))
    if not path.exists():
        files.write(path, now, 0o600)
    elif path.read_text("utf-8") != now:
        raise UserError(
            f"{path}: the rows of this client, or which of them are held out, are not those that "
            "this run began with, so its account does not hold for them: put them back, or start "
            "another run"
        )


def release_key(
    resident: Resident, order: Order, tensors: Tensors, split: str, peers: tuple[str, ...] = ()
) -> str:
    """A digest of all that a release depends on but its noise: the adapter, the rows, how they are
    used, and who shares the passes, as sums are rounded otherwise in other company. Only where
    nothing differs may the same noise be used again: on two releases that differ it would show
    their difference."""
    config = resident.config.model_dump(mode="json", exclude={"run", "simulation"})
    facts = [
        order.purpose,
        order.round,
        order.scale,
        fingerprint(manifest(tensors)),
        resident.rows_digest(order.client, split),
        config,
        *([peers] if len(peers) > 1 else []),
        *([resident.config.run.rounds] if resident.config.train.counts_rounds else []),
    ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
