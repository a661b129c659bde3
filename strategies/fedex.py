"""FedEx-LoRA: averaged factors, and a frozen residual that makes the average exact.

    Ā = Σ p_i A_i,   B̄ = Σ p_i B_i,   W0 ← W0 + s ΔW,   ΔW = Σ p_i B_i A_i − B̄ Ā

The residual stays in factors, W0 + P·Q (+ D): ΔW has rank (K−1)·r, so P and Q grow by that many
columns and rows a round, and only those are sent. Once they cost as much as the layer they are
recompressed; where that does not help they are folded into a dense D, and grow afresh beside it.

Everybody is sent P and Q, so they may not hold a client's own factors, of which the stacks that sum
to ΔW are made. What joins the residual is the SVD of its product. It says that product and nothing
else.

On request the residual is bounded, and no longer exact: `truncate` cuts what a round adds to its
best rank, `max_rank` all of it. A residual that is full is cut to its best half, so that what
follows is again appended, and only a full one is ever sent anew. It stays in factors for good.

Three ways to give the same model W* to every client after a round:

    average  A = Ā, B = B̄, residual as above (truncated to its best rank r' on request)
    local    client i keeps A_i, B_i; its residual is M − s B_i A_i, where W0 + M = W*
    reinit   A is drawn anew, B = 0, and the whole mean s Σ p_i B_i A_i joins the residual

Singhal et al., "FedEx-LoRA: Exact Aggregation for Federated and Efficient Fine-Tuning of Foundation
Models" (2024), arXiv:2410.09432.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor

from fedlora import Client, Round, Strategy, Tensors, Update
from fedlora.errors import UserError
from fedlora.lowrank import Factors, compress, difference, mean, residual, stack, truncate
from fedlora.strategy import Base
from fedlora.tensors import modules, select

Changes = dict[str, Tensor | None]


class FedEx(Strategy):
    """Clients train and upload A and B; the server sends their means and what the means lose."""

    trained = shared = {"A", "B", "head"}
    refuses = {
        "lora-fa": "it leaves A as it is, so that averaging B alone is exact and leaves no "
        "residual; use ffa or fedit",
        "dora": "its residual makes averages of sums W0 + s·B·A exact, and DoRA's W is a quotient; "
        "use fedit, ffa, fedsa or local",
    }
    paper = "FedEx-LoRA (Singhal et al. 2024, arXiv:2410.09432)"

    truncate: PositiveInt | None = Field(
        None, description="Best rank r' that each round's residual is cut to; exact by default."
    )
    max_rank: PositiveInt | None = Field(
        None,
        description="Most columns of the whole residual P, Q, which then never becomes a dense D; "
        "one that would have more is cut to its best half of that. Exact by default.",
    )
    assignment: Literal["average", "local", "reinit"] = Field(
        "average",
        description="What clients' factors become. All three give the same model; average did best "
        "in the paper (GLUE 84.39, local 78.41, reinit 53.46).",
    )

    @model_validator(mode="after")
    def _bounded_average(self) -> "FedEx":
        for name in ("truncate", "max_rank") if self.assignment != "average" else ():
            if getattr(self, name) is not None:
                raise ValueError(f'{name} goes with assignment = "average": others must be exact')
        return self

    def begin(self, base: Base) -> Tensors:
        """As PEFT initialises it. Raises UserError where a full residual, cut to its half, would
        lose what the initialiser took out of W0 (pissa, olora)."""
        tensors = super().begin(base)
        taken = max((t.shape[1] for t in select(tensors, {"P"}).values()), default=0)
        if self.max_rank is not None and 2 * taken > self.max_rank:
            raise UserError(
                f"strategy.max_rank = {self.max_rank} is too little beside adapter.init: what that "
                f"takes out of W0 is a residual of rank {taken}; set it to {4 * taken} or more"
            )
        return tensors

    def broadcast(self, state: Tensors, client: Client, round: Round) -> Tensors:
        """The state; under `local` with the client's own factors, taken out of its residual."""
        view = super().broadcast(state, client, round)
        for module in modules(state, "B") if self.assignment == "local" else ():
            if own := _own(module, state, client):
                B, A = own
                P, Q = -client.scale * B, A
                if start := _begun(module, state):
                    P, Q = difference(*start, B, A, client.scale)
                if f"{module}.P" in state:
                    P, Q = stack((state[f"{module}.P"], state[f"{module}.Q"]), (P, Q))
                view |= {f"{module}.A": A, f"{module}.B": B, f"{module}.P": P, f"{module}.Q": Q}
        return view

    def aggregate(  # type: ignore[override]  # None removes an entry
        self, state: Tensors, updates: Sequence[Update], round: Round
    ) -> Changes:
        """Heads averaged, factors assigned, and every module's residual grown."""
        means = super().aggregate(state, updates, round)  # one update's worth; the rest by modules
        changes: Changes = {**select(means, {"head"})}
        for module in modules(state, "B"):
            match self.assignment:
                case "average":
                    factors, added = self._average(module, means, updates, round)
                case "local":
                    factors, added = _local(module, state, updates)
                case "reinit":
                    factors, added = _reinit(module, state, updates, round)
            changes |= factors
            changes |= self._grown(module, state, added)
        return changes

    def _average(
        self, module: str, means: Tensors, updates: Sequence[Update], round: Round
    ) -> tuple[Changes, Factors]:
        """The means as clients will really hold them, and s ΔW against those."""
        B, A, p, s = _uploads(module, updates)
        B_bar, A_bar = _factors(module, means)
        B_hat, A_hat = round.assigned(B_bar), round.assigned(A_bar)
        added = residual(B, A, p, B_bar, s)
        if round.wire != torch.float32 and len(updates) > 1:
            added = stack(added, difference(B_bar, A_bar, B_hat, A_hat, s))
        return {f"{module}.B": B_hat, f"{module}.A": A_hat}, added

    def _grown(self, module: str, state: Tensors, added: Factors) -> Changes:
        """The residual with `added`, of which its product alone enters: by appending while factors
        are smaller than the layer, or there is room. Under `local` earlier rounds cancel, so all is
        made anew."""
        P_name, Q_name, D_name = f"{module}.P", f"{module}.Q", f"{module}.D"
        held = [(state[P_name], state[Q_name])] if P_name in state else []
        if self.assignment == "local":
            P, Q = compress(*stack(*held, added))
        else:
            P, Q = self._bounded(*stack(*held, self._cut(added)))
        if P.shape[1] == 0:
            return {P_name: None, Q_name: None}
        if self.max_rank is not None or _smaller(P, Q):
            return {P_name: P, Q_name: Q}
        D = state[D_name] + P @ Q if D_name in state else P @ Q
        return {P_name: None, Q_name: None, D_name: D}

    def _cut(self, added: Factors) -> Factors:
        """A round's residual in the form that travels."""
        caps = [cap for cap in (self.truncate, self.max_rank) if cap is not None]
        return truncate(*added, min(caps)) if caps else compress(*added)

    def _bounded(self, P: Tensor, Q: Tensor) -> Factors:
        """All of the residual, made anew only where it has grown too large."""
        if self.max_rank is None:
            return (P, Q) if _smaller(P, Q) else compress(P, Q)
        return (P, Q) if P.shape[1] <= self.max_rank else truncate(P, Q, -(-self.max_rank // 2))


def _local(module: str, state: Tensors, updates: Sequence[Update]) -> tuple[Changes, Factors]:
    """Clients' factors remembered, and what they moved: Σ p_i s (B_i' A_i' − B_i A_i). One who
    comes for the first time began with the state's own."""
    memory: Changes = {}
    moved = []
    B, A, p, s = _uploads(module, updates)
    for update, b, a, weight in zip(updates, B, A, p, strict=True):
        before = _own(module, state, update.client) or _begun(module, state)
        moved.append(difference(b, a, *before, weight * s) if before else (weight * s * b, a))
        memory |= {_memory(module, update.client, "B"): b, _memory(module, update.client, "A"): a}
    return memory, stack(*moved)


def _reinit(
    module: str, state: Tensors, updates: Sequence[Update], round: Round
) -> tuple[Changes, Factors]:
    """A as PEFT draws it, U(±1/√n), B = 0, and the whole mean for the residual."""
    B, A = _factors(module, state)
    draw = torch.rand(A.shape, generator=round.generator("server", module)).to(A.device)
    fresh = (2 * draw - 1) / A.shape[1] ** 0.5
    return {f"{module}.B": torch.zeros_like(B), f"{module}.A": fresh}, mean(
        *_uploads(module, updates)
    )


def _smaller(P: Tensor, Q: Tensor) -> bool:
    """Whether factors take less than the layer: ρ (m + n) < m n."""
    return P.numel() + Q.numel() < P.shape[0] * Q.shape[1]


def _factors(module: str, tensors: Mapping[str, Tensor]) -> Factors:
    return tensors[f"{module}.B"], tensors[f"{module}.A"]


def _uploads(
    module: str, updates: Sequence[Update]
) -> tuple[list[Tensor], list[Tensor], list[float], float]:
    """All clients' B (m, r), A (r, n), weights p_i that sum to one, and the one scale s."""
    B, A = zip(*[_factors(module, u.tensors) for u in updates], strict=True)
    total = sum(u.weight for u in updates)
    return list(B), list(A), [u.weight / total for u in updates], updates[0].client.scale


def _memory(module: str, client: Client, part: str) -> str:
    return f"client/{client.id}/{module}.{part}"


def _own(module: str, state: Tensors, client: Client) -> Factors | None:
    """The factors that a client uploaded last, or None before it ever did."""
    names = _memory(module, client, "B"), _memory(module, client, "A")
    return (state[names[0]], state[names[1]]) if names[0] in state else None


def _begun(module: str, state: Tensors) -> Factors | None:
    """The factors that a newcomer begins with, or None where their product is nothing: B = 0, as it
    is unless adapter.init says otherwise. Shapes alone, as on the meta device, cannot tell."""
    B, A = _factors(module, state)
    return (B, A) if not B.is_meta and B.any() else None
