"""FFA-LoRA: A stays as it was drawn, so that averaging B alone is exact.

    Σ p_i B_i A = B̄ A,   B̄ = Σ p_i B_i

With DoRA M is trained and averaged too, and W, which is no sum, is exact no more.

A is one random matrix for each layer, the same on every client: it travels once, at first contact.

Sun et al., "Improving LoRA in Privacy-preserving Federated Learning" (2024), arXiv:2403.12313.
"""

from fedlora import Strategy


class FFA(Strategy):
    """Clients train B (M on DoRA) and the head; A is never trained."""

    trained = shared = {"B", "M", "head"}
    # With A fixed the same step moves the product less: the paper's rates are ten times LoRA's.
    defaults = {"train.lr": 1e-2}
    paper = "FFA-LoRA (Sun et al. 2024, arXiv:2403.12313)"
