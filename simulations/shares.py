"""The server's rows, scored by the workers: those that are idle take the passes in shares.

A worker reads the state of the round from its checkpoint. What its passes add to the sums comes
back pass by pass and is added here in the order of all passes, so that the score is the same to the
bit as one process's. Answers are one worker's.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import torch
from safetensors.torch import load_file

from fedlora import cancel, evaluation, profile
from fedlora.answers import Answer
from fedlora.errors import Failed
from fedlora.resident import Resident
from fedlora.runs import RunDir
from server.score import Rated, Wanted, answered, load_global
from simulations.pool import Chore, Pool

LOOK = 0.1  # seconds between looks at whether anybody still waits
SHARES = 2  # a worker: who trains longest takes fewer


class Shares:
    """A `server.score.Rate` by the workers of a pool.

    Args:
        context: of the workers' messages, which says the run's configuration.
    """

    def __init__(self, pool: Pool, run: RunDir, rows: int, context: Mapping[str, Any]) -> None:
        self._pool, self._run, self._rows, self._context = pool, run, rows, context

    def __call__(self, number: int, wants: Wanted) -> Rated:
        shares = SHARES * self._pool.workers if wants.score else 0
        asked: list[dict[str, Any]] = [{"share": [i, shares]} for i in range(shares)]
        if wants.answers:
            asked.append({"share": None})
        about = {"folder": str(self._run.round(number)), "round": number, "context": self._context}
        replies: SimpleQueue[tuple[int, dict[str, Any]]] = SimpleQueue()
        for i, one in enumerate(asked):
            self._pool.submit(Chore(i, {**about, **one}, replies))
        found: dict[int, dict[str, Any]] = {}
        while len(found) < len(asked):
            cancel.check()
            try:
                i, found[i] = replies.get(timeout=LOOK)
            except Empty:
                continue
            if "error" in found[i]:
                raise Failed(f"the server's rows could not be scored: {found[i]['error']}")
        score = None
        if shares:
            passes = _interleaved([found[i]["sums"] for i in range(shares)])
            sums = torch.tensor(passes, dtype=torch.float64).reshape(-1, 3)
            score = evaluation.total(sums, self._rows)
        said = found[shares]["answers"] if wants.answers else []
        return Rated(score, [Answer(**one) for one in said])


def _interleaved(shares: list[list[list[float]]]) -> list[list[float]]:
    """Share i of n has the passes i, i + n, i + 2n, …"""
    count = sum(len(share) for share in shares)
    return [shares[i % len(shares)][i // len(shares)] for i in range(count)]


def done(resident: Resident, asked: Mapping[str, Any]) -> dict[str, Any]:
    """A worker's part: what it finds, as JSON has it, where floats keep all their bits."""
    most = resident.most  # counted before anything is loaded
    with profile.span("evaluate"):
        state = load_file(Path(asked["folder"]) / "state.safetensors")
        load_global(resident, state, asked["round"])
    if asked["share"] is None:
        return {"answers": [asdict(a) for a in answered(resident, asked["round"])]}
    i, n = asked["share"]
    rows = resident.encoded("", "test")
    model, share = resident.adapter.model, slice(i, None, n)
    sums = evaluation.sums(resident.task, model, rows, most, share=share)
    return {"sums": sums.tolist()}
