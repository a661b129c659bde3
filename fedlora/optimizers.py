"""A client's optimizer of one round: an ordinary one of torch, made afresh.

What the configuration adds hangs on it as hooks, so that every loop just calls `step`. From the
gradient g that a loop leaves, clipped and under privacy noised,

    g ← g + μ (w − w_sent)          FedProx (arXiv:1812.06127), of parts that are shared
    g ← g (A Aᵀ + δ I)⁺ / s²        of B, LoRA-FA (arXiv:2308.03303), which leaves A alone
    w ← step(w, g; lr · f(i))       f the schedule

None of it sees rows but through g, so under DP-SGD all of it is post-processing.

Shapes: a tensor (…), of K clients in one stack (K, …); A (r, n), B (m, r).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft.optimizers.lorafa import LoraFAOptimizer
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from fedlora.config import Train
from fedlora.tensors import Tensors, modules, part_of, select

DELTA = 1e-8  # as in PEFT's LoRA-FA


@dataclass(frozen=True)
class Turn:
    """A round as a client's optimizer sees it: its number, of so many, and the parts that the
    client shares."""

    round: int = 1
    rounds: int = 1
    shared: frozenset[str] = frozenset()


ALONE = Turn()  # the only round of somebody who shares nothing


def fresh(
    trained: Tensors,
    settings: Train,
    steps: int = 1,
    turn: Turn = ALONE,
    grams: Mapping[str, Tensor] | None = None,
    stacked: bool = False,
) -> torch.optim.Optimizer:
    """The configuration's optimizer of these tensors, by name.

    Args:
        steps: those of this round; one optimizer serves clients of equally many where the
            schedule decays.
        grams: `inverses` of every B, which LoRA-FA wants.
        stacked: whether tensors are (K, …).
    """
    made = _made(trained, settings, stacked)
    if settings.proximal:
        _pulled(made, select(trained, turn.shared), settings.proximal)
    if settings.optimizer == "lora-fa":
        _projected(made, select(trained, {"B"}), grams or {})
    if settings.paced:
        scheduler = LambdaLR(made, factor(settings, steps, turn))
        made.register_step_post_hook(lambda *_: scheduler.step())
    return made


def factor(settings: Train, steps: int, turn: Turn = ALONE) -> Callable[[int], float]:
    """i -> the share of the learning rate that step i, from 0, of this round has.

    A client that sat rounds out is where the federation is. No step has a share of zero."""
    whole = settings.schedule_over == "federation"
    first, total = ((turn.round - 1) * steps, turn.rounds * steps) if whole else (0, steps)

    def at(i: int) -> float:
        past = first + i - settings.warmup
        if past < 0:
            return (first + i + 1) / settings.warmup
        done = past / max(1, total - settings.warmup)
        match settings.schedule:
            case "constant":
                return 1.0
            case "linear":
                return 1 - done
            case "cosine":
                return (1 + math.cos(math.pi * done)) / 2

    return at


def inverses(tensors: Tensors, scales: Mapping[str, float] | float) -> Tensors:
    """`<module>.B` -> (r, r), (A Aᵀ + δ I)⁺ / s² of one client, in float64.

    Args:
        scales: s, or that of each module.
    """
    found: Tensors = {}
    for module in modules(tensors, "A"):
        A = tensors[f"{module}.A"].detach().double()
        s = scales[module] if isinstance(scales, Mapping) else scales
        eye = torch.eye(len(A), dtype=A.dtype, device=A.device)
        found[f"{module}.B"] = torch.linalg.pinv(A @ A.T + DELTA * eye) / s**2
    return found


def _made(trained: Tensors, settings: Train, stacked: bool) -> torch.optim.Optimizer:
    common: dict[str, Any] = {"lr": settings.lr, "weight_decay": settings.weight_decay}
    tensors = list(trained.values())
    fused = _fused(tensors)
    match settings.optimizer:
        case "adamw":
            return torch.optim.AdamW(tensors, fused=fused, **common)
        case "sgd":
            return torch.optim.SGD(tensors, momentum=settings.momentum, fused=fused, **common)
        case "lora-plus":
            groups = _lora_plus(trained, settings, stacked)
            return torch.optim.AdamW(groups, fused=fused, **common)
        case "lora-fa":
            # Its class takes tensors with "lora" in their names for pairs of A and B. Under other
            # names it is its own AdamW, to which the projection of B's gradient is added here: in
            # full precision, where PEFT's is in bf16, and of stacks too.
            names = [str(i) for i in range(len(tensors))]
            unused = [None] * len(tensors)
            group: Any = {"params": tensors, "names": names, "scaling_factors": unused}
            return LoraFAOptimizer([group], **common)


def _fused(tensors: Sequence[Tensor]) -> bool:
    """Whether torch's fused kernels can move these: they take numbers as they lie, so that a view
    into a stack of larger ranks would be moved where it is not."""
    return all(t.is_contiguous() and t.device.type in ("cpu", "cuda") for t in tensors)


def _lora_plus(trained: Tensors, settings: Train, stacked: bool) -> list[dict[str, Any]]:
    """The groups of LoRA+ (arXiv:2402.12354) by PEFT's rule: B and all vectors are ratio times as
    fast, and of those the head's (biases, norms) do not decay."""
    fast = settings.lr * settings.lr_ratio
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, tensor in trained.items():
        vector = tensor.ndim - stacked == 1
        lr = fast if vector or part_of(name) == "B" else settings.lr
        decay = 0.0 if vector and part_of(name) == "head" else settings.weight_decay
        groups.setdefault((lr, decay), []).append(tensor)
    return [{"params": ts, "lr": lr, "weight_decay": wd} for (lr, wd), ts in groups.items()]


def _pulled(made: torch.optim.Optimizer, shared: Tensors, strength: float) -> None:
    sent = [(t, t.detach().clone()) for t in shared.values()]

    def pull(*_: object) -> None:
        for t, start in sent:
            if t.grad is not None:
                t.grad.add_(t.detach() - start, alpha=strength)

    made.register_step_pre_hook(pull)


def _projected(made: torch.optim.Optimizer, Bs: Tensors, grams: Mapping[str, Tensor]) -> None:
    pairs = [(B, grams[name].to(B)) for name, B in Bs.items()]

    def project(*_: object) -> None:
        for B, inverse in pairs:
            if B.grad is not None:
                B.grad = B.grad @ inverse

    made.register_step_pre_hook(project)
