"""A frozen base of which every rank holds a share, for models that one device has no room for.

torch's `fully_shard` (FSDP2) cuts each parameter of a block along its first dimension. They are
gathered before the block runs, forward and backward, and freed after it. The adapter's tensors stay
ordinary ones on every rank, and so do embeddings, output layer and whatever else is in no block.

A 4-bit weight is cut as the bytes that it is, which FSDP2 takes as they are; what they stand for
(bitsandbytes' quantisation state) stays with the layer on every rank.

Reference: Zhao et al., "PyTorch FSDP", arXiv:2304.11277.
"""

from typing import cast

from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers.modeling_layers import GradientCheckpointingLayer

from fedlora.adapters.adapter import Adapter
from fedlora.errors import UserError


def shard(adapter: Adapter, device: str, size: int) -> None:
    """Leave this rank its share of the base, on its device, as one of `size`.

    Raises:
        UserError: the model's code has no blocks that are known.
    """
    base = adapter.model.get_base_model()
    blocks = [m for m in base.modules() if isinstance(m, GradientCheckpointingLayer)]
    if not blocks:
        raise UserError(
            f"parallel = fsdp: {type(base).__name__} is not made of blocks that could be cut into "
            "shares. Set parallel = ddp"
        )
    own = {id(t) for t in adapter.live().values()}
    frozen = {p for block in blocks for p in block.parameters() if id(p) not in own}
    whole = {p for p in adapter.model.parameters() if p not in frozen}
    mesh = init_device_mesh(device.partition(":")[0], (size,))
    for block in reversed(blocks):  # inner ones first
        fully_shard(block, mesh=mesh, ignored_params=whole)
    # The blocks have one root, by which the next one's parameters come while one is at work.
    fully_shard(cast(nn.Module, base.base_model), mesh=mesh, ignored_params=whole)
