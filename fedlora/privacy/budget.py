"""What every release goes through, a client's or the server's, before its noise is drawn."""

from fedlora.config.privacy import Privacy
from fedlora.privacy import accounting
from fedlora.privacy.accounting import History
from fedlora.privacy.entropy import insecure
from fedlora.privacy.ledger import Ledger


class Spent(Exception):
    """The release would go past the target."""


def epsilon(ledger: Ledger, history: History, privacy: Privacy) -> float:
    """ε of a history at the plan's δ; nothing is spent before there is a plan."""
    mechanism = ledger.mechanism
    if mechanism is None:
        return 0.0
    return accounting.epsilon(history, mechanism.delta, privacy.accountant)


def pay(ledger: Ledger, privacy: Privacy, key: str, steps: int, *path: object) -> bytes:
    """The secret that a release draws all its noise from, once the ledger has it written down.

    Args:
        key: a digest of everything that goes into the release but its noise, see `Ledger.spend`.
        path: names the release where `privacy.insecure_seed` stands in for the secret.

    Raises Spent, with the reason, where that would go past `privacy.epsilon`; a repeat costs
    nothing.
    """
    if privacy.epsilon is not None and not ledger.repeats(key):
        after = epsilon(ledger, ledger.after(steps), privacy)
        if after > privacy.epsilon:
            spent = epsilon(ledger, ledger.history, privacy)
            raise Spent(
                f"the privacy budget is spent: ε is {spent:.3g}, and another round would take it "
                f"to {after:.3g}, past privacy.epsilon = {privacy.epsilon:g}"
            )
    secret = ledger.spend(key, steps)
    seed = privacy.insecure_seed
    return secret if seed is None else insecure(seed, *path)
