"""What a client may say in numbers."""

from hypothesis import given
from hypothesis import strategies as some

from server.metrics import KNOWN, sane

VALUES = some.dictionaries(some.one_of(some.sampled_from([*KNOWN]), some.text()), some.floats())


@given(VALUES, some.integers(1, 10**9), some.floats(0, 0.99))
def test_only_what_is_known_and_possible_passes(
    metrics: dict[str, float], examples: int, holdout: float
) -> None:
    found = sane(metrics, examples, holdout)
    assert found.keys() <= KNOWN.keys() & metrics.keys()
    for name, value in found.items():
        low, high = KNOWN[name]
        assert metrics[name] == value and low <= value <= high


@given(some.integers(2, 10**6), some.floats(0, 0.9))
def test_what_an_honest_client_holds_out_passes(rows: int, holdout: float) -> None:
    """`data.hold_out` rounds the share of all rows; at least one is left to train on."""
    held = round(holdout * rows)
    if held < rows:
        assert sane({"rows": held}, rows - held, holdout) == {"rows": held}
    trained = max(1, rows - held)
    assert "rows" not in sane(
        {"rows": 4 * (rows + 2) + 3}, trained, holdout if holdout < 0.5 else 0
    )
