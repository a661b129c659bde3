"""What a client may say in numbers. All else of its metrics ends here, where it comes in: whatever
is made of them, a mean, a table, a picture, never sees a value that no honest client can have."""

from collections.abc import Mapping

LARGE = 1e9  # above any loss, norm or time that an honest client reports
FRACTION, AMOUNT = (0.0, 1.0), (0.0, LARGE)

KNOWN: Mapping[str, tuple[float, float]] = {
    # of training
    "loss": AMOUNT,  # also that on held-out rows
    "seconds": AMOUNT,
    # of evaluation
    "score": FRACTION,
    "rows": AMOUNT,  # see `sane`
    "global": FRACTION,
    "global_loss": AMOUNT,
    # of privacy
    "epsilon": AMOUNT,
    "delta": FRACTION,
    "noise_multiplier": AMOUNT,
    "sample_rate": FRACTION,
    "steps": AMOUNT,
    "clipped": FRACTION,
    "gradient_norm": AMOUNT,
}


def sane(metrics: Mapping[str, float], examples: int, holdout: float) -> dict[str, float]:
    """The known ones whose value is possible.

    Args:
        examples: the client's training rows, as it said.
        holdout: the share of a client's rows that is held out, below 1: as many rows as that leaves
            may have been scored (twice as many, for rounding where there are few).
    """
    held = 2.0 * examples * holdout / (1 - holdout) + 2.0
    bounds = {**KNOWN, "rows": (0.0, held)}
    return {k: metrics[k] for k, (low, high) in bounds.items() if low <= metrics.get(k, -1) <= high}
