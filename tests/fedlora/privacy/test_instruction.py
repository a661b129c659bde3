"""DP-SGD over conversations: what is clipped is each row's own gradient."""

from functools import partial
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from fedlora.adapters import Adapter
from fedlora.config import Config
from fedlora.privacy.engines import ENGINES, per_example
from tests.fedlora.tasks.talk import instruction, save, turns

TALKS = [
    turns("what colour has thing1", "it is red"),
    turns("what", "red"),
    turns("has", "it is green it is blue it is black"),
]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_row_s_gradient_is_that_of_the_row_alone(engine: str, tmp_path: Path) -> None:
    """A mean over the batch's tokens would make it depend on the others' lengths: a row's is that
    of Transformers' own loss on the row alone."""
    task = instruction(save(tmp_path), privacy__epsilon=3.0)
    config = Config.model_validate({"adapter": {"kind": "lora", "rank": 2}})
    made = Adapter(task.model(0), config.adapter, 0)
    draw = torch.Generator().manual_seed(1)
    made.load({k: torch.randn(t.shape, generator=draw) for k, t in made.initial().items()})
    rows = task.encode(Dataset.from_dict({"messages": TALKS, "label": [0] * 3}))
    made.model.train()
    with per_example(engine, made, made.parts) as gradients:
        gradients(partial(task.losses, made.model, task.batch(rows, range(3))), 3)
        parameters = [p for p in made.model.parameters() if p.requires_grad]
        found = [p.grad_sample.clone() for p in parameters]
    for i in range(3):
        alone = torch.autograd.grad(made.model(**task.batch(rows, [i])).loss, parameters)
        for g, expected in zip(found, alone, strict=True):
            torch.testing.assert_close(g[i], expected, rtol=1e-4, atol=1e-6)
