"""How worker processes begin.

To import torch, transformers and the rest takes seconds of a core and hundreds of MB; so on a CPU
it is done once for all workers, which are forked from the process that did it and nothing else: its
memory is shared, and it imports beside the caller's own imports. CUDA and its like stay behind in a
fork, so workers on a device are processes begun anew.
"""

import multiprocessing
import os
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, SpawnContext

PRELOADED = ["simulations.preload"]


def warm() -> None:
    """Begin to import, in a process that ends with this one; nothing where it has begun."""
    # The fewer threads there are to be lost in a fork, the better: numpy's are of no use here.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
    forkserver.ensure_running()


def context(device: str) -> ForkServerContext | SpawnContext:
    """Of workers on a device, by its name as torch has it."""
    if device == "cpu":
        return multiprocessing.get_context("forkserver")
    return multiprocessing.get_context("spawn")
