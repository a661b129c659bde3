"""What a model is given of a batch, and when a mask over padding is needed.

Attention without a mask runs in a device's fast kernels. Rows are padded on the right: where a
model looks back only, what is padded is nothing to a token; where all rows are of one length,
nothing is padded. What is asked of a batch is asked before it is on a device, which would be waited
for.
"""

from typing import Any

import torch
from torch import Tensor

from fedlora.models import quiet

MASK = "attention_mask"


def given(batch: dict[str, Tensor], device: torch.device, backward: bool) -> dict[str, Tensor]:
    """The inputs of a batch but its labels, on a device, with a mask only where it is needed.

    Args:
        backward: whether the model looks back only.
    """
    left_out = {"labels"}
    if MASK in batch and (backward or bool(batch[MASK].all())):
        left_out.add(MASK)
    kept = {name: t for name, t in batch.items() if name not in left_out}
    return {name: t.to(device, non_blocking=True) for name, t in kept.items()}


@torch.inference_mode()
def looks_back(model: Any) -> bool:
    """Whether what stands behind a token is nothing to a language model: it is tried, on two rows
    that begin alike."""
    words = model.get_input_embeddings().num_embeddings
    ids = torch.tensor([[0, 1, 2, 3], [0, 1, 4, 5]], device=model.device) % words
    with quiet():
        one, other = model(input_ids=ids, use_cache=False).logits[:, :2].float()
    return bool((one - other).abs().max() <= 1e-3 * one.abs().max())
