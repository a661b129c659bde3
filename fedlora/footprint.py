"""The memory that a stacked training pass takes, from what autograd keeps of one row's."""

from typing import Any

import torch
from torch import Tensor

from fedlora import pieces
from fedlora.adapters import Adapter
from fedlora.adapters.stack import Stack
from fedlora.streams import forked
from fedlora.tasks import Task

# Besides what is kept, a pass has gradients of activations under way, and what the allocator leaves
# between them. With MiniLM the peak of passes of 200 to 4,500 tokens was 1.2 to 1.9 times what is
# kept (tests/fedlora/test_footprint.py measures it): the largest, and a little for other models.
UNDER_WAY = 2.0


def token_bytes(task: Task, adapter: Adapter, encoded: Any) -> int:
    """Bytes of memory a padded token of a pass in which every row has a copy of its own of the
    adapter, with a gradient: counted on the longest of some rows, where attention costs most, and
    with dropout as in training, where attention keeps the weights of every pair of tokens."""
    row = max(range(len(encoded)), key=encoded.length)
    kept: dict[int, torch.UntypedStorage] = {}  # held, so that no place is used twice

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage
        return tensor

    stack = Stack(
        adapter,
        [adapter.initial()] * 2,
        [adapter.scaling.at(adapter.scaling.rank)] * 2,
        adapter.parts,
    )
    frozen = {t.untyped_storage().data_ptr() for t in adapter.model.state_dict().values()}
    owner = torch.zeros(1, dtype=torch.int64, device=adapter.model.device)
    copies = stack.copies(owner)
    hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda t: t)
    adapter.model.train()
    try:
        with forked(0, "footprint"), hooks, stack.rows(owner, copies):
            losses = task.losses(adapter.model, task.batch(encoded, [row]))
        del losses
    finally:
        adapter.model.eval()
    activations = sum(s.nbytes() for place, s in kept.items() if place not in frozen)
    own = sum(t.numel() * t.element_size() for t in copies.values())
    return int((UNDER_WAY * activations + own) / pieces.padded(encoded.length(row)))
