"""What a stacked pass is said to take, against what it takes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fedlora.errors import UserError
from fedlora.footprint import token_bytes
from tests.fedlora import lengths
from tests.fedlora.adapters.padded import traces

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    "given",
    [
        {"rows": 4},
        {"rows": 20},
        {"rows": 80},
        {"rows": 40, "data": {"max_length": 256}},
        {"rows": 20, "adapter": {"rank": 32, "target_modules": "all-linear"}},
        {"rows": 80, "adapter": {"dropout": 0.1, "target_modules": "all-linear"}},
        {"rows": 40, "adapter": {"kind": "vera", "rank": 256}},
        {"rows": 20, "private": True, "adapter": {"rank": 32, "target_modules": "all-linear"}},
    ],
    ids=json.dumps,
)
def test_the_peak_of_a_pass_stays_below_and_is_not_far_from_it(given: dict[str, Any]) -> None:
    """With MiniLM and dropout as in training, in a process of its own: at most the bytes a token
    that were counted, and no less than half."""
    command = [sys.executable, "-m", "tests.fedlora.peak", json.dumps(given)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    bound = found["tokens"] * found["token_bytes"]
    assert bound / 2 <= found["grown"] <= bound, found["grown"] / bound


def test_it_is_the_same_whatever_came_before(global_rng_untouched: None) -> None:
    """As it decides which rows share a pass: the model's mode and whoever is loaded are no matter,
    and nothing is left behind."""
    made = lengths.adapter("bert", "lora", dropout=0.2)
    rows = lengths.rows(9, "footprint")
    before, first = traces(made), token_bytes(lengths.Task(), made, rows)  # type: ignore[arg-type]
    for rank in (2, 1, 3, 2, 1):  # what this frees may be where the next pass allocates
        made.model.train()
        made.load(lengths.state(made, 1, rank), 0.3)
        assert token_bytes(lengths.Task(), made, rows) == first > 0  # type: ignore[arg-type]
    made.trainable(made.parts)
    assert traces(made) == before


def test_dropout_and_rank_take_memory() -> None:
    """Masks and attention's weights are kept for the backward pass; a copy a row is in private
    passes alone."""
    rows = lengths.rows(9, "footprint")

    def bytes_of(private: bool = False, **fields: Any) -> int:
        made = lengths.adapter("bert", "lora", **fields)
        return token_bytes(lengths.Task(), made, rows, private)  # type: ignore[arg-type]

    plain = bytes_of()
    assert bytes_of(dropout=0.2) > 1.1 * plain
    copies = bytes_of(private=True) - plain
    assert copies > 0.1 * plain
    wide = bytes_of(rank=8)
    assert plain < wide < plain + copies / 2
    assert bytes_of(private=True, rank=8) - wide > 1.8 * copies


def test_a_model_that_cannot_be_stacked_is_left_as_it_was() -> None:
    made = lengths.adapter("bert", "lora")
    outer = made.model.get_base_model().get_submodule("bert.encoder.layer.0.intermediate")
    outer.forward = (
        lambda x: outer.intermediate_act_fn(  # type: ignore[method-assign, operator]
            outer.dense(x.flatten(0, 1)).unflatten(0, x.shape[:2])  # type: ignore[operator]
        )
    )
    made.trainable(set())
    made.model.eval()
    before = traces(made)
    with pytest.raises(UserError, match="intermediate"):
        token_bytes(lengths.Task(), made, lengths.rows(9, "footprint"))  # type: ignore[arg-type]
    assert traces(made) == before
