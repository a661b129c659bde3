"""The gradient of each row's own loss, which DP-SGD clips, by one of two engines.

Shapes: a batch of rows; for a parameter p,  p.grad_sample[i] = ∂ loss_i / ∂ p  is (rows, *p.shape).

`stacked` gives every row a copy of the adapter, so that one ordinary backward pass leaves each
row's gradient in its copy; it serves every adapter. `hooks` is Opacus's: rules by type of layer,
from the layer's inputs and the gradients of its outputs.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from fedlora.adapters import Adapter
from fedlora.adapters.stacked import Pass, stacked
from fedlora.errors import UserError
from fedlora.tensors import select

Losses = Callable[[], Tensor]  # (rows,): one loss a row, of that row alone
Gradients = Callable[[Losses, int], Tensor]

ENGINES = ("stacked", "hooks")


@contextmanager
def per_example(engine: str, adapter: Adapter, parts: set[str]) -> Iterator[Gradients]:
    """Inside, `gradients(losses, rows)` runs `losses` on the adapter's model, at least one row, and
    leaves in `p.grad_sample`, (rows, *p.shape), of every parameter of `adapter.trainable(parts)`
    the gradient of each row's own loss: zero where the loss does not depend on it. It returns the
    losses, detached, and leaves `p.grad` empty.

    The model is in training mode (`hooks` sees no other). Afterwards nothing is left on it but
    what `trainable` set.

    Raises:
        UserError: `hooks` does not know this adapter's layers, see `unsupported`; inside, losses
            that are not one a row, or a trained layer that is given something else than the
            batch's rows.
    """
    assert engine in ENGINES, engine
    parameters = adapter.trainable(parts)
    try:
        if engine == "stacked":
            trained = select(adapter.live(), parts & adapter.parts)
            with stacked(adapter, trained) as enter:
                yield lambda losses, rows: _stacked(trained, enter, losses, rows)
        else:
            with _hooks(adapter, parameters) as gradients:
                yield gradients
    finally:
        _forget(parameters, "grad_sample", "summed_grad")  # the latter is DPOptimizer's
        for p in parameters:
            p.grad = None


def unsupported(adapter: Adapter) -> str:
    """Why `hooks` cannot be used for what this adapter can train; empty if it can."""
    if adapter.kind == "vera":
        return "VeRA trains bare vectors, which are no layer that Opacus has a rule for"
    from opacus.grad_sample import GradSampleHooks

    for name, module in _holders(adapter, list(select(adapter.live(), adapter.parts).values())):
        if type(module) not in GradSampleHooks.GRAD_SAMPLERS:
            return f"Opacus has no rule for {name}, a {type(module).__name__}"
        if any(True for _ in module.buffers()):
            return f"Opacus refuses trained layers with buffers, as {name} has"
    return ""


def _stacked(trained: dict[str, Any], enter: Pass, losses: Losses, rows: int) -> Tensor:
    copies = {k: p.detach().expand(rows, *p.shape).requires_grad_() for k, p in trained.items()}
    with enter(copies, [1] * rows, None):
        each = _one_a_row(losses(), rows)
        each.sum().backward()
    for name, p in trained.items():
        grad = copies[name].grad
        p.grad_sample = p.new_zeros((rows, *p.shape)) if grad is None else grad
    return each.detach()


@contextmanager
def _hooks(adapter: Adapter, parameters: list[Any]) -> Iterator[Gradients]:
    if reason := unsupported(adapter):
        raise UserError(f"privacy.engine = hooks: {reason}. Set privacy.engine = stacked.")
    from opacus.grad_sample import GradSampleHooks

    layers = [module for _, module in _holders(adapter, parameters)]
    hooks = GradSampleHooks(adapter.model, loss_reduction="sum")
    hooks.forbid_grad_accumulation()

    def restart() -> None:
        """Forget what a pass left behind, which may have been a forward pass alone."""
        _forget(layers, "activations", "max_batch_len")
        _forget(parameters, "_current_grad_sample")
        for p in parameters:
            p.grad, p.grad_sample, p._forward_counter = None, None, 0

    def gradients(losses: Losses, rows: int) -> Tensor:
        restart()
        each = _one_a_row(losses(), rows)
        with warnings.catch_warnings():
            # True of the first layer, whose input is the frozen embedding; its rule needs none.
            warnings.filterwarnings("ignore", "Full backward hook is firing")
            each.sum().backward()
        for p in parameters:
            p.grad_sample, p.grad = _found(p, rows).to(p.dtype), None
        return each.detach()

    try:
        yield gradients
    finally:
        restart()
        hooks.cleanup()


def _found(p: Any, rows: int) -> Tensor:
    """What Opacus left on a parameter: under the second name where the loss used one call of its
    layer and not another; nothing where it used none."""
    found = p.grad_sample if p.grad_sample is not None else getattr(p, "_current_grad_sample", None)
    if found is None and p.grad is None:
        return p.new_zeros((rows, *p.shape))
    if found is None or len(found) != rows:
        raise UserError(
            "privacy.engine = hooks: this model uses a trained layer's weights without calling it, "
            "or calls it with something else than the batch's rows. Set privacy.engine = stacked."
        )
    return found


def _holders(adapter: Adapter, tensors: list[Any]) -> list[tuple[str, nn.Module]]:
    """The modules, by path, that hold these parameters themselves."""
    wanted = {id(t) for t in tensors}
    modules = adapter.model.get_base_model().named_modules()
    return [(k, m) for k, m in modules if wanted & {id(p) for p in m.parameters(recurse=False)}]


def _one_a_row(losses: Tensor, rows: int) -> Tensor:
    if losses.shape != (rows,):
        raise UserError(
            f"the task gives losses of shape {tuple(losses.shape)} for {rows} rows: private "
            f"training needs one a row, ({rows},)."
        )
    return losses


def _forget(holders: Iterable[Any], *names: str) -> None:
    for holder in holders:
        for name in names:
            holder.__dict__.pop(name, None)
