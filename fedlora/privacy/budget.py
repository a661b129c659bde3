"""What every release goes through, a client's or the server's, before its noise is drawn."""

from fedlora.config.privacy import Privacy
from fedlora.privacy import accounting, entropy
from fedlora.privacy.accounting import History
from fedlora.privacy.ledger import Ledger


class Spent(Exception):
    """The release would go past the target."""


def epsilon(ledger: Ledger, history: History, privacy: Privacy) -> float:
    """ε of a history at the plan's δ; nothing is spent before there is a plan."""
    mechanism = ledger.mechanism
    if mechanism is None:
        return 0.0
    return accounting.epsilon(history, mechanism.delta, privacy.accountant)


def pay(ledger: Ledger, privacy: Privacy, steps: int, *path: str | int) -> bytes:
    """The secret that one release draws all its noise from, once the ledger has it written down.
    It is on no disk, and no other release ever gets it: what is lost after this is paid for.

    Args:
        path: names the release where `privacy.insecure_seed` stands in for the secret.

    Raises Spent, with the reason, where that would go past `privacy.epsilon`.
    """
    afford(ledger, privacy, steps)
    ledger.spend(steps)
    return secret(privacy, *path)


def afford(ledger: Ledger, privacy: Privacy, steps: int) -> None:
    """Raises Spent, with the reason, where so many steps more would go past `privacy.epsilon`."""
    if privacy.epsilon is None:
        return
    after = epsilon(ledger, ledger.after(steps), privacy)
    if after > privacy.epsilon:
        spent = epsilon(ledger, ledger.history, privacy)
        raise Spent(
            f"the privacy budget is spent: ε is {spent:.3g}, and another round would take it "
            f"to {after:.3g}, past privacy.epsilon = {privacy.epsilon:g}"
        )


def secret(privacy: Privacy, *path: str | int) -> bytes:
    """A secret from the operating system, or what `privacy.insecure_seed` has in its place."""
    seed = privacy.insecure_seed
    return entropy.fresh() if seed is None else entropy.insecure(seed, *path)
