"""FSLoRA: each client trains a random sketch of the global factors, as wide as it can afford.

    W0 + s B S_i A,   S_i = (r / k_i) Σ_{j ∈ I_i} e_j e_jᵀ,   |I_i| = k_i,   E[S_i] = I

which is an ordinary rank-k_i LoRA on the slices B[:, I_i] and A[I_i, :] with scale s·r / k_i. The
index set I_i is drawn afresh for each round, client and layer, and both factors share it. The
server puts every slice back; what a client did not hold counts as unchanged:

    B ← B + Σ p_i (B_i − B[:, I_i]) at columns I_i,   rows of A likewise

Fang et al., "Federated Sketching LoRA" (2025), arXiv:2501.19389.
"""

from dataclasses import replace

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from fedlora import Client, Round, Strategy, Tensors, Update
from fedlora.errors import UserError
from fedlora.strategy import Scaling
from fedlora.tensors import module_of, part_of, select


class FSLoRA(Strategy):
    """Clients train k_i columns of B and rows of A; ranks may differ between clients."""

    trained = shared = {"A", "B", "head"}
    mixed_ranks = True
    refuses = {
        "init": "it begins with a part of W0 in s·B·A, and a client trains a sketch s·B·S·A, which "
        "is far from it, so that its model would not be W0 at the start; use default or gaussian",
        "dora": "a sketch s·B·S·A has another norm than s·B·A, so that M would mean another model "
        "on each client; use fedit, ffa, fedsa or local",
    }
    paper = "FSLoRA (Fang et al. 2025, arXiv:2501.19389)"

    ranks: list[PositiveInt] | dict[PositiveInt, PositiveFloat] | None = Field(
        None,
        description="Ranks of clients whose node sets none: a list is dealt out over clients in "
        "turn, a table {rank: weight} is drawn from; by default r, r/2 and r/4 in turn.",
    )

    def broadcast(self, state: Tensors, client: Client, round: Round) -> Tensors:
        """The state with A (k, n) and B (m, k) cut to the client's index set of this round; to be
        evaluated, to that of the round to come, so that its download serves twice."""
        ahead = 1 if round.purpose == "evaluate" else 0
        coming = replace(round, number=round.number + ahead)
        view = super().broadcast(state, client, round)
        for name, whole in select(view, {"A", "B"}).items():
            axis = _rank_axis(name)
            view[name] = whole.index_select(axis, _indices(name, whole, client, coming))
        return view

    def place(self, update: Update, state: Tensors, round: Round) -> Tensors:
        """The client's slices put into a copy of the state's A (r, n) and B (m, r)."""
        placed = dict(update.tensors)
        for name, part in select(placed, {"A", "B"}).items():
            I = _indices(name, state[name], update.client, round)
            placed[name] = state[name].index_copy(_rank_axis(name), I, part)
        return placed

    def rank(self, full: int, index: int, client: str, round: Round) -> int:
        """This client's k. Raises UserError where the run's `ranks` exceed `full`, the global r."""
        if not self.ranks:
            return max(1, full >> index % 3)
        if (largest := max(self.ranks)) > full:
            raise UserError(
                f"strategy.ranks asks for rank {largest}, above the global adapter.rank = {full}: "
                f"raise adapter.rank, or give clients {full} at most"
            )
        if isinstance(self.ranks, list):
            return self.ranks[index % len(self.ranks)]
        weights = torch.tensor(list(self.ranks.values()))
        first = replace(round, number=0).generator(client, "rank")  # one draw for the whole run
        return list(self.ranks)[int(torch.multinomial(weights, 1, generator=first))]

    def scale(self, scaling: Scaling, rank: int) -> float:
        """s·r / k, with s that of the global r: under rsLoRA too."""
        return scaling.at(scaling.rank) * scaling.rank / rank


def _rank_axis(name: str) -> int:
    """Along which axis the rank lies: rows of A (r, n), columns of B (m, r)."""
    return 0 if part_of(name) == "A" else 1


def _indices(name: str, whole: Tensor, client: Client, round: Round) -> Tensor:
    """I_i of the module that a factor belongs to, (k,) in order: the same for its A and B."""
    full = whole.shape[_rank_axis(name)]
    order = torch.randperm(full, generator=round.generator(client, module_of(name)))
    return order[: client.rank].sort().values.to(whole.device)
