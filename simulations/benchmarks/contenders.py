"""Ways to make a private step, each a context that gives a function of one batch.

A step is everything from clearing the gradients to moving the parameters: forward, backward, and,
where it is private, clipping and noise. `plain` is the step that the others are compared with.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fedlora import config, data, parallel, training
from fedlora.adapters import Adapter
from fedlora.optimizers import Turn
from fedlora.privacy import entropy
from fedlora.privacy import training as private
from fedlora.privacy.accounting import Mechanism
from fedlora.privacy.engines import per_example
from fedlora.streams import stream
from fedlora.tasks.classification import Classification

Batch = dict[str, Tensor]
Step = Callable[[Batch], int]  # returns the batch's rows
Opened = AbstractContextManager[Step]


class Counting(Classification):
    """Counts the rows that it makes batches of."""

    rows = 0

    def batch(self, encoded: Any, indices: Sequence[int]) -> Batch:
        self.rows += len(set(indices))  # one that only fills up a pass is there twice
        return super().batch(encoded, indices)


class Workload:
    """A model and all clients' training rows, as a configuration says, on a device."""

    def __init__(self, settings: config.Config, device: str) -> None:
        federation = data.pool(data.load(settings.data, settings.run.seed))
        self.settings = settings
        self.task: Any = Counting(settings, federation.labels)
        self.encoded = self.task.encode(federation.train("pooled"))
        self.device = device

    def adapter(self) -> Adapter:
        """A new one in training mode, with a model of its own. On the CPU their frozen weights are
        the same memory, mapped from one file, so that caches favour none."""
        seed = self.settings.run.seed
        made = Adapter(self.task.model(seed).to(self.device), self.settings.adapter, seed)
        made.model.train()
        return made

    def batches(self, rows: int, count: int) -> list[Batch]:
        """The same ones for the same arguments."""
        draw = stream(self.settings.run.seed, "benchmark", rows)
        chosen = torch.randint(len(self.encoded), (count, rows), generator=draw)
        return [self.task.batch(self.encoded, indices.tolist()) for indices in chosen]

    def optimizer(self, adapter: Adapter) -> torch.optim.Optimizer:
        adapter.trainable(adapter.parts)
        return training.fresh(adapter, adapter.parts, self.settings.train, 1, Turn())

    def private(self, adapter: Adapter, rows: int) -> dict[str, Any]:
        """What every optimizer of Opacus is told. Left to itself, it draws torch's own noise."""
        privacy = self.settings.privacy
        return {
            "optimizer": self.optimizer(adapter),
            "noise_multiplier": privacy.noise_multiplier,
            "max_grad_norm": privacy.clip,
            "expected_batch_size": rows,
        }


@contextmanager
def plain(load: Workload, adapter: Adapter, rows: int) -> Iterator[Step]:
    """Not private: AdamW on the mean loss."""
    updater = load.optimizer(adapter)

    def step(batch: Batch) -> int:
        updater.zero_grad()
        load.task.losses(adapter.model, batch).mean().backward()
        updater.step()
        return len(batch["labels"])

    yield step


@contextmanager
def engine(name: str, load: Workload, adapter: Adapter, rows: int) -> Iterator[Step]:
    """One of `fedlora.privacy.engines`, stepped as `fedlora.privacy.training` does."""
    from fedlora.privacy.optimizer import Optimizer

    settings = load.private(adapter, rows)
    updater = Optimizer(secret=entropy.insecure(0), ranks=parallel.ALONE, **settings)
    with per_example(name, adapter, adapter.parts) as gradients:

        def step(batch: Batch) -> int:
            updater.zero_grad()
            gradients(lambda: load.task.losses(adapter.model, batch), len(batch["labels"]))
            updater.step()
            return len(batch["labels"])

        yield step


@contextmanager
def functorch(load: Workload, adapter: Adapter, rows: int) -> Iterator[Step]:
    """Opacus's hooks, each layer's gradients by vmap rather than by a rule."""
    from opacus.grad_sample import GradSampleHooks
    from opacus.optimizers import DPOptimizer

    updater = DPOptimizer(**load.private(adapter, rows))
    hooks = GradSampleHooks(adapter.model, loss_reduction="sum", force_functorch=True)

    def step(batch: Batch) -> int:
        updater.zero_grad()
        load.task.losses(adapter.model, batch).sum().backward()
        updater.step()
        return len(batch["labels"])

    with _silent(hooks):
        yield step


@contextmanager
def ghost(load: Workload, adapter: Adapter, rows: int) -> Iterator[Step]:
    """Opacus's ghost clipping: norms alone, then a second backward pass of the losses weighted by
    them. Li et al., "Large Language Models Can Be Strong Differentially Private Learners" (2022),
    arXiv:2110.05679, section 4."""
    from opacus.grad_sample import GradSampleHooksFastGradientClipping
    from opacus.optimizers import DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPTensorFastGradientClipping

    updater = DPOptimizerFastGradientClipping(**load.private(adapter, rows))
    clip = load.settings.privacy.clip
    hooks = GradSampleHooksFastGradientClipping(adapter.model, max_grad_norm=clip)

    def step(batch: Batch) -> int:
        updater.zero_grad()
        losses = load.task.losses(adapter.model, batch)
        DPTensorFastGradientClipping(hooks, updater, losses).backward()
        updater.step()
        return len(batch["labels"])

    with _silent(hooks):
        yield step


@contextmanager
def _silent(hooks: Any) -> Iterator[None]:
    """Opacus's hooks, taken off again, without a warning that is true of the first layer, whose
    input is the frozen embedding, and of no consequence."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Full backward hook is firing")
        try:
            yield
        finally:
            hooks.cleanup()


CONTENDERS: dict[str, Callable[[Workload, Adapter, int], Opened]] = {
    "plain": plain,
    "stacked": partial(engine, "stacked"),
    "hooks": partial(engine, "hooks"),
    "functorch": functorch,
    "ghost": ghost,
}


def plain_round(load: Workload, adapter: Adapter, number: int) -> int:
    """A client's whole round, not private; returns the rows it saw."""
    seed = (load.settings.run.seed, "benchmark", number)
    train = load.settings.train
    return training.train(load.task, adapter, adapter.parts, load.encoded, train, seed).rows


def private_round(load: Workload, adapter: Adapter, number: int, steady: bool = False) -> int:
    """A client's whole private round: the optimizer's making, Poisson sampling, the histogram of
    norms, noise from the secret; returns the rows it saw.

    Args:
        steady: in passes as over an owner's rows on a node, see `fedlora.privacy.steady`.
    """
    settings, rows = load.settings, len(load.encoded)
    assert settings.privacy.noise_multiplier is not None
    plan = Mechanism(
        noise_multiplier=settings.privacy.noise_multiplier,
        sample_rate=settings.train.batch_size / rows,
        delta=1 / (2 * rows),
    )
    load.task.rows = 0
    private.train(
        load.task,
        adapter,
        adapter.parts,
        load.encoded,
        settings.train,
        settings.privacy,
        plan,
        entropy.insecure(0, "benchmark", number),
        steady=steady,
    )
    return load.task.rows
