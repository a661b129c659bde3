"""The benchmark by shapes: that it measures what it says, on small shapes."""

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from fedlora.streams import stream
from simulations.benchmarks import stacks


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    monkeypatch.setattr(stacks, "TINY", LlamaConfig(**tiny))
    monkeypatch.setattr(stacks, "BLOCK", LlamaConfig(**tiny))
    monkeypatch.setattr(stacks, "RANK", 4)
    monkeypatch.setattr(stacks, "REPEATS", 1)


def test_what_an_approximation_loses_is_held_against_the_best(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing where all is decomposed; and what another subspace loses is said."""
    assert abs(stacks.decomposed(20, 30)[1]) < 1e-5

    def worse(W: torch.Tensor, rank: int) -> tuple[torch.Tensor, ...]:
        U, S, V = torch.linalg.svd(W, full_matrices=False)
        return U[:, 1 : rank + 1], S[1 : rank + 1], V[1 : rank + 1]

    monkeypatch.setattr(stacks, "svd", worse)
    W = torch.randn(30, 20, generator=stream(0, "signs", 30, 20)).sign()
    S = torch.linalg.svdvals(W.double()).square()
    error = (S[0] + S[5:].sum()).sqrt() / S[4:].sum().sqrt() - 1
    assert stacks.decomposed(30, 20)[1] == pytest.approx(float(error), rel=1e-3)


def test_the_report_has_every_layer(tmp_path: Path) -> None:
    """All of a block's shapes, and targets that say what was measured."""
    stacks.main(["--json", str(tmp_path / "stacks.json")])
    told = json.loads((tmp_path / "stacks.json").read_text())
    entering, start = told["tables"]
    assert len(entering["rows"]) == 4
    named = {row[0] for row in start["rows"]}
    shapes = {(32, 32), (16, 32), (48, 32), (32, 48)}
    assert {f"SVD of signs {m} × {n}" for m, n in shapes} <= named
    assert len(told["targets"]) == 3
