"""The process that workers are forked from: it has imported what they need, and done nothing else.

To import torch, transformers and the rest takes seconds of a core and hundreds of MB; so it is done
once for all workers, whose memory of it is shared, and beside the caller's own imports.
"""

import multiprocessing
import os
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext

PRELOADED = ["clients.app"]


def warm() -> None:
    """Begin to import, in a process that ends with this one; nothing where it has begun."""
    # The fewer threads there are to be lost in a fork, the better: numpy's are of no use here.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    context().set_forkserver_preload(PRELOADED)
    forkserver.ensure_running()


def context() -> ForkServerContext:
    return multiprocessing.get_context("forkserver")
