"""Layers that recompute, and steps in small passes: other memory and time, the same training."""

import pytest
import torch

from fedlora.adapters import Adapter
from fedlora.tasks.instruction import Instruction
from fedlora.tensors import Tensors
from tests.fedlora.lengths import doubled
from tests.fedlora.tasks.talk import save
from tests.fedlora.trained import LOOPS, SGD, adapter, rows, task, trained


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Instruction:
    return task(save(tmp_path_factory.mktemp("alike")))


def close(found: Tensors, truth: Tensors, tolerance: float) -> None:
    for name, tensor in truth.items():
        torch.testing.assert_close(found[name], tensor, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("loop", LOOPS)
def test_recomputed_layers_give_the_same_gradients(own: Instruction, loop: str) -> None:
    """By each loop, dropout's masks included; and they do recompute."""
    plain, again = (adapter(own, again=x, dropout=0.2) for x in (False, True))
    passes = []
    layer = again.base(next(iter(again.shapes)))
    layer.register_forward_hook(lambda *_: passes.append(1))
    close(trained(loop, own, again), trained(loop, own, plain), 1e-6)
    assert len(passes) == 2 * SGD.steps_a_round(len(rows(own)))


@pytest.mark.parametrize("loop", ["plain", "stacked"])
def test_a_step_in_small_passes_is_the_same_step(own: Instruction, loop: str) -> None:
    """Gradients add up over passes of at most train.micro_batch rows: equal in float64 to 1e-10,
    with the token mean over the whole step."""
    found = []
    for micro in (None, 1):
        made: Adapter = adapter(own)
        doubled(made)
        counted: list[int] = []
        made.model.register_forward_pre_hook(
            lambda _, args, kwargs, counted=counted: counted.append(len(kwargs["input_ids"])),
            with_kwargs=True,
        )
        read = trained(loop, own, made, SGD.model_copy(update={"micro_batch": micro}))
        live = {k: t.detach().clone() for k, t in made.live().items()}  # what is read is fp32
        found.append(live if loop == "plain" else read)
        assert (max(counted) == 1) == (micro == 1)
    assert {t.dtype for t in found[0].values()} == {torch.float64}
    close(found[1], found[0], 1e-10)
