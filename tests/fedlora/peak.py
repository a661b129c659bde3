"""The memory that stacked passes really take: to be run as a process of its own.

    python -m tests.fedlora.peak '{"rows": 24, …}'

prints JSON: padded tokens, `token_bytes`, and by how much the resident set grew at its peak.
"""

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

import torch

import strategies
from fedlora import settings
from fedlora.adapters.stack import Stack
from fedlora.footprint import token_bytes
from fedlora.pieces import padded
from fedlora.resident import Resident
from fedlora.streams import forked


def made(given: dict[str, Any]) -> Resident:
    tree = {"strategy": {"name": "fedit"}, **given}
    return Resident(*settings.resolve(tree, strategies.load))


def step(resident: Resident, stack: Stack, rows: list[int], encoded: Any, private: bool) -> None:
    """A pass of all clients' rows, forward and backward, dropout on; where `private`, every row
    has a copy of its own."""
    model = resident.adapter.model
    owner = sorted(i % len(stack.clients) for i in range(len(rows)))
    copies = None
    if private:
        own = {k: t.detach() for k, t in stack.copies(owner).items()}
        copies = {k: t.requires_grad_() for k, t in own.items()}
    with forked(0, "dropout"), stack.passes() as through, through(owner, copies):
        resident.task.losses(model, resident.task.batch(encoded, rows)).sum().backward()


def memory(name: str) -> int:
    """A field of the process's status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (found,) = [line for line in lines if line.startswith(f"{name}:")]
    return 1024 * int(found.split()[1])


def measured(rows: int, given: dict[str, Any], private: bool) -> dict[str, int]:
    """Rows of the longest that there are, after a small pass that warms up."""
    torch.set_num_threads(1)
    resident = made(given)
    adapter, encoded = resident.adapter, resident.encoded(resident.federation.clients[0], "train")
    bound = token_bytes(resident.task, adapter, encoded, private)
    longest = max(range(len(encoded)), key=encoded.length)
    stack = Stack(adapter, [adapter.initial()] * 2, [1.0] * 2, adapter.parts)
    adapter.model.train()
    step(resident, stack, [longest], encoded, private)
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = memory("VmRSS")
    step(resident, stack, [longest] * rows, encoded, private)
    return {
        "tokens": rows * padded(encoded.length(longest)),
        "token_bytes": bound,
        "grown": memory("VmHWM") - before,
    }


if __name__ == "__main__":
    request = json.loads(sys.argv[1])
    print(json.dumps(measured(request.pop("rows"), request, request.pop("private", False))))
