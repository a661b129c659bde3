"""A language model of a billion parameters really federated, with its weights drawn at random."""

from dataclasses import replace
from pathlib import Path

import pytest

from simulations.benchmarks import llama
from simulations.benchmarks.watched import watched

GB = 1e9
PARAMETERS = 1_235_814_400  # of Llama-3.2-1B, whose embeddings are tied to its head
ADAPTER = 11_272_192  # r = 16, all seven linears


@pytest.mark.slow
def test_a_billion_parameters_on_one_machine(tmp_path: Path) -> None:
    """Two clients, two rounds, one step of two short rows, all seven linears in a bf16 base: every
    update is used, what crosses is the adapter in bf16, and the base is in memory once: with all
    libraries and adapters all processes together have less than two and a quarter of it
    (proportional set sizes, so that shared pages count once). By FedIT, whose state does not grow
    by the round."""
    shape = replace(llama.ONE_BILLION, words=8)
    model, rows = llama.save(tmp_path / "model", shape), tmp_path / "rows.jsonl"
    llama.write_rows(rows, shape, 2, 4)
    settings = [
        *(f"model.name={model}", "model.task=instruction", "model.dtype=bf16"),
        *("strategy.name=fedit", "adapter.rank=16", "adapter.target_modules=all-linear"),
        *(f"data.name={rows}", "data.partition=natural", "data.by=client"),
        *("data.test=0", "data.public=0", "data.holdout=0", "data.max_length=32"),
        *("train.steps=1", "train.batch_size=2", "run.rounds=2", "run.wire=bf16"),
        *("simulation.workers=1", "run.deadline=3000"),
    ]
    found = watched(settings, tmp_path / "run")
    base = 2 * PARAMETERS
    told = {k: round(getattr(found, k) / GB, 2) for k in ("parent", "worker", "together")}
    print(f"GB at the peak: {told}; the base has {base / GB:.2f}; rounds took {found.rounds} s")
    assert len(found.rounds) == 2 and found.update == 2 * ADAPTER
    assert found.worker < 1.25 * base
    assert found.together < 2.25 * base
