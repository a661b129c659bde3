"""A batch in pieces of rows of like length, so that little of the work is padding.

Every row of a piece is padded to its longest, and a pass over one costs a fixed part besides its
tokens. A batch's loss is a mean over its rows: the gradients of its pieces add up to its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

MULTIPLE = 8  # rows are padded to a multiple of it, which kernels like


@dataclass(frozen=True)
class Costs:
    """What a pass costs, in padded tokens: `fixed` besides its own; it takes at most `most`, and
    at most so many rows (None: any number)."""

    fixed: int
    most: int
    rows: int | None = None


# On a core a pass of a few hundred tokens is as fast a token as one gets, and past a thousand the
# activations leave the caches. A GPU is far from busy with that many; only its memory is a bound.
CORE = Costs(32, 1024)
GPU_MOST = 2**31
# A GPU waits for its kernels to be started. Guesses until `fitted` has them of a real card.
LAUNCH = 10e-6  # seconds to start a kernel
KERNELS = 100  # of a layer and its adapters, forward and backward
FLOPS = 1e14  # a second, as reached in bf16


def costs(model: Any, bound: int | None = None, rows: int | None = None) -> Costs:
    """Those of a model where it is, for passes of at most so many tokens where memory allows no
    more, and of at most so many rows."""
    device = next(model.parameters()).device
    fixed = CORE.fixed if device.type == "cpu" else started(model)
    return Costs(fixed, most(device, bound), rows)


def most(device: torch.device | str, bound: int | None = None) -> int:
    """Padded tokens of a pass on a device, at most so many."""
    usual = CORE.most if torch.device(device).type == "cpu" else GPU_MOST
    return usual if bound is None else max(1, min(bound, usual))


def started(model: Any) -> int:
    """Padded tokens that a GPU computes in the time in which a pass's kernels are started, for L
    layers of W weights in all: a token takes 2 W operations forward, and as many backward, where
    the weights are frozen and inputs alone have gradients,

        fixed = L KERNELS LAUNCH / (4 W / FLOPS).
    """
    layers = model.config.get_text_config().num_hidden_layers
    weights = model.num_parameters(exclude_embeddings=True)
    return round(layers * KERNELS * LAUNCH * FLOPS / (4 * weights))


def fitted(seconds: Mapping[int, float]) -> tuple[float, float]:
    """(seconds of a pass besides its tokens, seconds a token), by least squares of what passes of
    two or more sizes took, {padded tokens: seconds}. Their quotient is `Costs.fixed`."""
    tokens = torch.tensor([[1.0, n] for n in seconds], dtype=torch.float64)
    took = torch.tensor(list(seconds.values()), dtype=torch.float64)
    fixed, each = torch.linalg.lstsq(tokens, took[:, None]).solution[:, 0].tolist()
    return fixed, each


def padded(length: int) -> int:
    """The length that a row is padded to where it is the longest."""
    return -(-length // MULTIPLE) * MULTIPLE


def cut(lengths: Sequence[int], costs: Costs) -> list[list[int]]:
    """The cheapest division of rows of these lengths: indices into them, each once, short rows
    first. A piece of more than `costs.most` padded tokens is one row alone.

    Pieces hold all rows of some neighbouring widths. With widths w_1 < w_2 < …, n_ij rows of widths
    w_i … w_j and k_ij passes that these take, the least cost of the rows up to width w_j is

        c_j = min over i ≤ j of  c_{i-1} + k_ij fixed + n_ij w_j.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    widths = [padded(lengths[i]) for i in order]
    ends = [i for i in range(1, len(order) + 1) if i == len(order) or widths[i] > widths[i - 1]]
    least, start = {0: 0}, {0: 0}
    for end in ends:
        width = widths[end - 1]
        choices = {i: c + _cost(end - i, width, costs) for i, c in least.items()}
        start[end] = min(choices, key=choices.__getitem__)
        least[end] = choices[start[end]]
    pieces: list[list[int]] = []
    end = len(order)
    while end:
        rows = _rows(widths[end - 1], costs)
        piece = order[start[end] : end]
        pieces[:0] = [piece[i : i + rows] for i in range(0, len(piece), rows)]
        end = start[end]
    return pieces


def _cost(count: int, width: int, costs: Costs) -> int:
    passes = -(-count // _rows(width, costs))
    return passes * costs.fixed + count * width


def _rows(width: int, costs: Costs) -> int:
    """Rows of this width that a pass takes."""
    fit = max(1, costs.most // max(1, width))
    return fit if costs.rows is None else min(fit, costs.rows)
