"""Which clients share passes over the frozen model, and how large those are: chosen once a run.

Orders of clients that follow each other, `simulation.copies` at a time, go to one worker, which
stacks them. Both choices stand in the run's configuration, so that a resumed run, or another with
that configuration, ends in the same bits.
"""

import math
import os
from typing import Any

from fedlora.config import Config
from fedlora.device import FREE, cards, free, placed
from fedlora.resident import Resident
from fedlora.tensors import nbytes, select

ROWS = 128  # of all clients in one step: with more, passes of rows of like length gain nothing
# Tensors of an adapter's size that training a client holds: values, gradients, moments, and in a
# pass of unequal shares a copy with its gradient.
HELD = 6


def workers(config: Config) -> int:
    """Worker processes, by default one a core, and on GPUs one each; 0 works in this process."""
    asked = config.simulation.workers
    if asked is not None:
        return asked
    device = placed(config.simulation.device)
    return (os.cpu_count() or 1) if device == "cpu" else max(1, len(cards(device)))


def beside(config: Config) -> int:
    """Workers that share a device."""
    devices = len(cards(config.simulation.device)) or 1
    return max(1, math.ceil(workers(config) / devices))


def rests(config: Config) -> bool:
    """Whether this process's model leaves the device to the workers, who train and score. A
    quantised one stays where it was made: its packed weights are that device's."""
    return workers(config) > 0 and not config.model.quantize


def chosen(resident: Resident) -> tuple[Config, str]:
    """The configuration with the choices that it leaves open, and why clients are served one after
    another where they could be expected to share passes, or ""."""
    config, simulation = resident.config, resident.config.simulation
    memory = simulation.memory
    if memory is None:
        share = FREE * _free(resident) / beside(config)
        memory = float(max(1, math.floor(share / 1e6)))
    copies, why = simulation.copies, ""
    if copies is None:
        why = _hindrance(resident)
        copies = 1 if why else _copies(resident, memory)
    update = {"memory": memory, "copies": copies}
    return config.model_copy(update={"simulation": simulation.model_copy(update=update)}), why


def _free(resident: Resident) -> int:
    """Bytes for all workers of a device together once each has its model: on a CPU they share its
    pages with this process."""
    model: Any = resident.adapter.model
    device, config = model.device, resident.config
    each = sum(t.nbytes for t in model.parameters()) if device.type != "cpu" else 0
    return max(0, free(device) - each * (beside(config) - rests(config)))  # this one is there


def _hindrance(resident: Resident) -> str:
    """Why this model and configuration cannot be stacked, or "": the model is tried."""
    if resident.config.privacy.engine == "hooks":
        return "privacy.engine = hooks knows one client's gradients at a time"
    return resident.reached.apart


def _copies(resident: Resident, memory: float) -> int:
    """Clients a pass: enough for ROWS, as many as fit in half of the memory, and evenly many for
    every worker.

    Args:
        memory: of a worker, in MB.
    """
    config = resident.config
    adapter = HELD * nbytes(select(resident.adapter.initial(), resident.adapter.parts))
    most = min(math.ceil(ROWS / config.train.batch_size), max(1, int(memory * 1e6 / 2 / adapter)))
    clients = config.run.sampled(len(resident.federation.clients))
    lanes = max(1, workers(config))
    jobs = lanes * math.ceil(clients / (lanes * most))
    return math.ceil(clients / jobs)
