"""The rows of metrics.jsonl: one a round, one a client and round."""

from collections.abc import Mapping

from fedlora.runs import Row
from server.rounds import Traffic

Metrics = Mapping[str, Mapping[str, float]]  # by client


def round_row(number: int, traffic: Traffic, seconds: float, **found: object) -> Row:
    """Scores are fractions, losses nats (a token, where rows have many), bytes those of the tensors
    as sent, by all clients together."""
    return {
        "kind": "round",
        "round": number,
        "score": None,
        "personalised": None,
        "loss": None,
        "test_loss": None,
        "personalised_loss": None,
        "bytes_up": sum(traffic.up.values()),
        "bytes_down": sum(traffic.down.values()),
        "clients": 0,
        "failed": {},
        "dropped": {},
        **found,
        "seconds": round(seconds, 3),
    }


WITHHELD = ("bytes_up", "bytes_down", "clients", "failed", "dropped", "seconds")


def withheld(row: Row) -> Row:
    """A round's row without all that tells who took part in it, or how many: under central privacy
    that is a secret, on which the bound rests."""
    return {k: v for k, v in row.items() if k not in WITHHELD}


def client_rows(
    number: int,
    examples: Mapping[str, int],
    weights: Mapping[str, float],
    trained: Metrics,
    scores: Metrics,
    traffic: Traffic,
    privacy: Mapping[str, Row],
) -> list[Row]:
    """A row for every client that was asked; one that gave no usable update has weight 0.

    Args:
        privacy: more fields of a client, in a private run.
    """
    return [
        {
            "kind": "client",
            "round": number,
            "client": client,
            "examples": examples[client],
            "weight": weights.get(client, 0.0),
            "loss": trained.get(client, {}).get("loss"),
            "score": scores.get(client, {}).get("score"),
            "test_loss": scores.get(client, {}).get("loss"),
            "bytes_up": traffic.up.get(client, 0),
            "bytes_down": traffic.down.get(client, 0),
            "seconds": trained.get(client, {}).get("seconds"),
            **privacy.get(client, {}),
        }
        for client in examples
    ]


def mean(metrics: Metrics, key: str, weights: Mapping[str, float]) -> float | None:
    """The weighted mean over the clients that report `key`, whatever their order; None where none
    does."""
    have = [c for c in sorted(metrics) if key in metrics[c] and weights.get(c, 0.0) > 0]
    total = sum(weights[c] for c in have)
    return sum(weights[c] * metrics[c][key] for c in have) / total if total else None
