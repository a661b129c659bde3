"""FedSA-LoRA: A learns what clients have in common and is shared; B is each client's own.

    Ā = Σ p_i A_i;   client i's model is W0 + s B_i Ā

B, the head and DoRA's M stay with the client, across rounds it sits out too. On an rsLoRA adapter
s = α/√r; on VeRA, W0 + diag(b) U diag(d) V, the vector d is shared and b stays.

Guo et al., "Selective Aggregation for Low-Rank Adaptation in Federated Learning" (2024),
arXiv:2410.01463.
"""

from fedlora import Strategy


class FedSA(Strategy):
    """Clients train everything and upload A alone (d on VeRA)."""

    shared = {"A", "d"}
    paper = "FedSA-LoRA (Guo et al. 2024, arXiv:2410.01463)"
