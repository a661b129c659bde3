"""Rows of `metrics.jsonl` made by hand."""

from typing import Any


def round_row(number: int, **changes: Any) -> dict[str, Any]:
    row = {"kind": "round", "round": number, "score": 0.8461, "personalised": 0.5, "loss": 0.25}
    row |= {"bytes_up": 1_230_000, "bytes_down": 999, "clients": 2, "seconds": 12.34}
    return row | {"failed": {}, "dropped": {}} | changes


def client_row(number: int, client: str, **changes: Any) -> dict[str, Any]:
    return {"kind": "client", "round": number, "client": client, "score": 0.7} | changes


START = round_row(0, loss=None, personalised=None, bytes_up=0, bytes_down=0)
ROWS = [START, round_row(1), client_row(1, "a"), client_row(1, "b", score=None), round_row(2)]


def spent(epsilon: float | None, delta: float | None = 1.4e-4) -> dict[str, Any]:
    """What a private run adds to a row."""
    return {"epsilon": epsilon, "delta": delta, "loss": None}


def private(spending: dict[str, list[float]]) -> list[dict[str, Any]]:
    """A run in which each client spent so much until the end of each round."""
    rows = [round_row(0, **spent(0.0, None))]
    for number, epsilons in enumerate(zip(*spending.values(), strict=True), 1):
        rows.append(round_row(number, **spent(max(epsilons))))
        rows += [
            client_row(number, client, **spent(epsilon, 1e-3))
            for client, epsilon in zip(spending, epsilons, strict=True)
        ]
    return rows


FOUR = {
    "editorials": [1.9, 2.3, 2.6, 2.8, 2.99],
    "films": [1.2, 1.5, 1.7, 1.85, 1.98],
    "products": [1.25, 1.52, 1.74, 1.9, 2.01],
    "tweets": [1.0, 1.2, 1.35, 1.5, 1.6],
}
