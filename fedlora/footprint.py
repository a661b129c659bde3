"""The memory that a training pass takes, from what autograd keeps of one row's."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from fedlora import pieces
from fedlora.adapters import Adapter
from fedlora.adapters.recompute import recomputing
from fedlora.adapters.stack import Stack
from fedlora.device import FREE, free
from fedlora.errors import UserError
from fedlora.streams import forked
from fedlora.tasks import Task
from fedlora.tasks.likelihood import under_way
from fedlora.tensors import nbytes

# Besides what is kept, a pass has gradients of activations under way, and what the allocator leaves
# between them. With MiniLM the peak of passes of 200 to 4,500 tokens was 1.2 to 1.9 times what is
# kept (tests/fedlora/test_footprint.py measures it): the largest, and a little for other models.
UNDER_WAY = 2.0


def bound(
    task: Task,
    adapter: Adapter,
    encoded: Any,
    memory: float | None,
    private: bool = False,
    stacked: bool = True,
) -> int | None:
    """Padded tokens that a pass over such rows may have, see `Resident.bound`.

    Args:
        memory: in MB; None: what the device has free.

    Raises:
        UserError: the model does not take these rows; where memory is given.
    """
    model: Any = adapter.model.get_base_model()
    room = memory * 1e6 if memory is not None else FREE * free(model.device)
    try:
        each = token_bytes(task, adapter, encoded, private, stacked)
    except Exception as error:
        if memory is None:
            return None
        raise UserError(f"the model does not take these rows: {error}") from error
    tokens = max(1, int((room / 2 - under_way(model, pieces.most(model.device))) / each))
    return tokens if memory is not None else 1 << (tokens.bit_length() - 1)


def token_bytes(
    task: Task, adapter: Adapter, encoded: Any, private: bool = False, stacked: bool = True
) -> int:
    """Bytes of memory a padded token of a training pass: counted on the longest of some
    rows, where attention costs most, and with dropout as in training, where attention keeps the
    weights of every pair of tokens.

    Args:
        private: every row has a copy of its own of the adapter, with a gradient.
        stacked: whether clients share the pass; else it is that of the plain loop.
    """
    row = max(range(len(encoded)), key=encoded.length)
    scale = adapter.scaling.at(adapter.scaling.rank)
    stack = Stack(adapter, [adapter.initial()], [scale], adapter.parts)
    batch = task.batch(encoded, [row])
    with forked(0, "footprint"), _through(stack, stacked):
        kept_of_row = kept(
            adapter.model, lambda: task.losses(adapter.model, batch), stack.tensors.values()
        )
    copy = nbytes(stack.tensors) if private else 0
    each = UNDER_WAY * (kept_of_row + copy) + copy
    return int(each / pieces.padded(encoded.length(row)))


@contextmanager
def _through(stack: Stack, stacked: bool) -> Iterator[None]:
    """Inside, the model trains, with the stack's one adapter or with its own."""
    adapter = stack.adapter
    adapter.model.train()
    try:
        if stacked:
            with stack.passes() as through, through([0]):
                yield
        else:
            adapter.trainable(adapter.parts)
            yield
    finally:
        adapter.model.eval()


def kept(model: nn.Module, forward: Callable[[], Tensor], besides: Iterable[Tensor] = ()) -> int:
    """Bytes that are kept for the backward pass of a model, its own weights and what is there
    besides apart; on any device, the meta device included.

    What is saved and no longer there at the end, as a chunk of logits, is not kept. Of layers that
    recompute, as they do in training mode, their inputs are kept, and one layer's own at a time:

        sum of all - sum_l own_l + sum_l input_l + max_l own_l      over layers l
    """
    frozen = {_place(t) for t in (*model.parameters(), *model.buffers(), *besides)}
    seen: dict[int, tuple[StorageWeakRef, int]] = {}  # while one is there no place is used twice
    layers = recomputing(model) if model.training else []
    begun: list[int] = []
    own, inputs = [0], 0

    def note(tensor: Tensor) -> Tensor:
        if (place := _place(tensor)) not in frozen:
            storage = tensor.untyped_storage()
            seen[place] = StorageWeakRef(storage), storage.nbytes()
        return tensor

    def total() -> int:
        return sum(size for storage, size in seen.values() if not storage.expired())

    def before(_: nn.Module, args: tuple[Any, ...]) -> None:
        nonlocal inputs
        begun.append(total())
        inputs += sum(x.nbytes for x in args if isinstance(x, Tensor))

    def after(*_: Any) -> None:
        own.append(total() - begun.pop())

    handles = [m.register_forward_pre_hook(before) for m in layers]
    handles += [m.register_forward_hook(after) for m in layers]
    for layer in layers:
        layer.gradient_checkpointing = False  # to see what it would keep
    try:
        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            loss = forward()  # with all that its graph keeps
    finally:
        for handle in handles:
            handle.remove()
        for layer in layers:
            layer.gradient_checkpointing = True
    found = total() - sum(own) + inputs + max(own)
    del loss
    return found


def _place(tensor: Tensor) -> int:
    """What tells storages apart on every device; on the meta device they have no address."""
    return tensor.untyped_storage()._cdata
