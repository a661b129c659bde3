"""FedIT: federated averaging of LoRA's two factors.

    Ā = Σ p_i A_i,   B̄ = Σ p_i B_i

Simple, and not exact: B̄Ā differs from Σ p_i B_i A_i wherever clients differ.

Zhang et al., "Towards Building the Federated GPT: Federated Instruction Tuning" (2023),
arXiv:2305.05644.
"""

from fedlora import Strategy


class FedIT(Strategy):
    """Every client trains and uploads all it has; the server averages it."""

    paper = "FedIT (Zhang et al. 2023, arXiv:2305.05644)"
