"""What a whole run needs of a machine: K clients a round, T rounds.

    S_t = S + min(t g, 2 Σ m n)    the state after t rounds: a residual is folded into a dense one
                                   once that is smaller, and grows beside it again; with
                                   strategy.max_rank ρ it is at most ρ Σ (m + n)
    server   the model, as it scores; the state, and a second one where a method aggregates itself;
             three updates: one as bytes on the wire, one arriving, one in the mean
    disk     checkpoints and the one being written; updates that wait; what clients keep, two views
             and the one being written (one file of each for all, where all hold the same)

Bytes of fp32, an upper end of each; the libraries themselves (some hundreds of MB) and the rows are
not in it. Shapes: adapted layers have m outputs and n inputs.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from fedlora.config import Config
from fedlora.cost import Cost
from fedlora.memory import FP32, Memory
from fedlora.strategy import Strategy, is_linear, stays

KEPT = 3  # checkpoints, or a client's views, while another is written
UPDATES = 3  # that the server has in memory


@dataclass(frozen=True)
class Needs:
    """Bytes of a run."""

    message: int  # the largest, down or up
    server: int  # memory
    client: int  # memory, of one in training
    disk: int

    def machine(self, workers: int) -> int:
        """The memory of a simulation: each worker trains a client at a time."""
        return self.server + max(1, workers) * self.client


def needs(
    config: Config,
    strategy: Strategy,
    found: Cost,
    memory: Memory,
    shapes: Mapping[str, tuple[int, int]],
) -> Needs:
    """What a run of this configuration needs.

    Args:
        memory: of a client in training.
        shapes: of the adapted layers, (m, n) each.
    """
    rounds, clients = config.run.rounds, config.run.sampled(config.data.clients)
    grown = min(found.growth * rounds, FP32 * _residual(strategy, shapes))
    state = found.state + grown
    update = FP32 * found.trained_parameters
    aggregating = state if is_linear(strategy) else 2 * state
    views = KEPT * (found.bytes_down_first + grown) * (1 if found.shared else config.data.clients)
    own = KEPT * update * config.data.clients if stays(strategy) else 0
    each = clients * (2 * update + grown) if config.run.keep == "updates" else 0
    checkpoints = KEPT * state if config.run.keep == "latest" else (rounds + 1) * (state + each)
    return Needs(
        message=max(found.bytes_down_first + grown, found.bytes_up),
        server=memory.base + memory.adapter + aggregating + UPDATES * update,
        client=memory.together,
        disk=checkpoints + clients * update + views + own,
    )


def _residual(strategy: Strategy, shapes: Mapping[str, tuple[int, int]]) -> int:
    """Numbers that the residual of all layers may have in the end."""
    rank = getattr(strategy, "max_rank", None)
    return sum(2 * m * n if rank is None else (m + n) * rank for m, n in shapes.values())


def lacking(needed: Needs, workers: int, memory: int, disk: int) -> list[str]:
    """What a machine with so many free bytes lacks for a simulation; nothing where it fits."""
    asked = {"memory": (needed.machine(workers), memory), "disk": (needed.disk, disk)}
    return [
        f"it needs {want / 1e9:.1f} GB of {what}, and {have / 1e9:.1f} GB are free"
        for what, (want, have) in asked.items()
        if want > have
    ]
