"""The devices of a node beside the first: a process each, that does what this one does.

The trainer is rank 0. It starts the others (`clients.follower`) when the first message comes, and
tells them what to do by their standard input; what they exchange as they do it goes between them
over torch.distributed, within the machine. They end as one:

    this process ends, however      their input ends, and so do they
    one of them ends                the exchange fails, and with it what was under way; where it
                                    does not notice, this process ends too
    what is under way fails         the others are ended, since nobody knows where each of them is

After any of these the next message starts all anew.
"""

import atexit
import json
import logging
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path
from typing import IO, Any

import safetensors.torch
import torch
import torch.distributed as dist

from clients.owner import Owner
from fedlora import parallel
from fedlora.errors import UserError
from fedlora.parallel import ALONE, Ranks
from fedlora.tensors import Tensors

NOTICE = 10.0  # seconds that the exchange has to notice that one of them ended
HEAD = struct.Struct("<QQ")  # bytes of the facts, of the tensors
VISIBLE = "CUDA_VISIBLE_DEVICES"
LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo", "NCCL_IB_DISABLE": "1"}

log = logging.getLogger("fedlora.ranks")

_numbers = count(1)
_outside = dict(os.environ)  # before this process narrows what it sees


@dataclass(frozen=True)
class Place:
    """Where this process trains: its device, its rank, and the group's number, 0 for none."""

    device: str
    ranks: Ranks = ALONE
    number: int = 0


class Group:
    """The other ranks, by this process, which is the first."""

    def __init__(self, devices: Sequence[str]) -> None:
        """Raises UserError where there are fewer devices, or one of them cannot be used."""
        self.number, self.size = next(_numbers), len(devices)
        _counted(devices)
        self._over = threading.Event()
        self._folder = Path(tempfile.mkdtemp(prefix="fedlora-"))  # for its owner alone
        self.others = [_process(d) for d in devices[1:]]
        atexit.register(self.close)
        for rank in range(1, self.size):
            threading.Thread(target=self._watch, args=(rank,), daemon=True).start()
        self.device = _seen(os.environ, devices[0])
        try:
            store = str(self._folder / "store")
            told = {"size": self.size, "store": store, "device": self.device}
            for rank, other in enumerate(self.others, 1):
                send(_pipe(other.stdin), {**told, "rank": rank})
            self.names = [called(self.device), *map(_name, self.others, devices[1:])]
            parallel.join(0, self.size, self.device, store)
        except BaseException:
            self.close()
            raise

    def tell(self, facts: Mapping[str, Any], tensors: Tensors) -> None:
        """All other ranks do this next."""
        for other in self.others:
            send(_pipe(other.stdin), facts, tensors)

    def close(self) -> None:
        """End the others. To be called again does nothing."""
        if self._over.is_set():
            return
        self._over.set()
        atexit.unregister(self.close)
        for other in self.others:
            other.kill()
            other.wait()
        if dist.is_initialized():
            dist.destroy_process_group()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _watch(self, rank: int) -> None:
        code = self.others[rank - 1].wait()
        if self._over.is_set():
            return
        log.error("rank %d of the node's devices ended with exit code %d", rank, code)
        if not self._over.wait(NOTICE):
            os._exit(1)  # waits for the one that ended, and would for ever


_group: Group | None = None
_place: Place | None = None  # of a follower


def place(owner: Owner) -> Place:
    """Where this process trains for this owner; where there are several devices the other ranks are
    there afterwards. Raises UserError where they cannot be."""
    global _group
    if _place or len(owner.devices) == 1:
        return _place or Place(owner.devices[0])
    if any(other.poll() is not None for other in processes()):
        close()
    if _group is None:
        _group = Group(owner.devices)
    ranks = Ranks(0, _group.size, owner.parallel, _group.device)
    return Place(_group.device, ranks, _group.number)


def names(owner: Owner) -> list[str]:
    """What the devices are called, by rank; see `place`."""
    place(owner)
    return _group.names if _group else []


def processes() -> list["subprocess.Popen[bytes]"]:
    """The other ranks' processes."""
    return [*_group.others] if _group else []


@contextmanager
def all_do(
    ranks: Ranks, facts: Mapping[str, Any], tensors: Tensors | None = None
) -> Iterator[None]:
    """Inside the block this process does what all ranks do, and the others do by these facts and
    tensors. What it raises ends the others."""
    if ranks.size == 1 or ranks.rank:
        yield
        return
    assert _group is not None
    try:
        _group.tell(facts, tensors or {})
        yield
    except BaseException:
        close()
        raise


def close() -> None:
    """End the other ranks, if there are any."""
    global _group
    if _group:
        _group.close()
    _group = None


def follow(device: str, ranks: Ranks) -> None:
    """From now on this process trains there, as one of those that another tells what to do."""
    global _place
    _place = Place(device, ranks)


def send(pipe: IO[bytes], facts: Mapping[str, Any], tensors: Tensors | None = None) -> None:
    """Facts and tensors to another process, which `receive`s them."""
    head = json.dumps(dict(facts)).encode()
    body = safetensors.torch.save({k: t.contiguous() for k, t in (tensors or {}).items()})
    for part in (HEAD.pack(len(head), len(body)), head, body):
        pipe.write(part)
    pipe.flush()


def receive(pipe: IO[bytes]) -> tuple[dict[str, Any], Tensors] | None:
    """The next facts and tensors; None where there are no more."""
    sizes = pipe.read(HEAD.size)
    if len(sizes) < HEAD.size:
        return None
    head, body = (pipe.read(size) for size in HEAD.unpack(sizes))
    return json.loads(head), safetensors.torch.load(body)


def _process(device: str) -> "subprocess.Popen[bytes]":
    environment = {**_outside, **LOOPBACK}
    _seen(environment, device)
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "clients.follower"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    )


def _seen(environment: Any, device: str) -> str:
    """The name of a device in a process of this environment, which is changed so that it sees no
    other: whoever sees all of them takes memory on each."""
    environment.update(LOOPBACK)
    kind, _, index = device.partition(":")
    if kind != "cuda":
        return device
    visible = _outside.get(VISIBLE)
    environment[VISIBLE] = visible.split(",")[int(index)] if visible else index
    return "cuda:0"


@cache
def _there() -> int:
    """CUDA devices that this process saw before it narrowed that; without touching them."""
    return torch.cuda.device_count()


def _counted(devices: Sequence[str]) -> None:
    indices = [int(device.partition(":")[2]) for device in devices if device.startswith("cuda")]
    if indices and max(indices) >= _there():
        raise UserError(f"device: there is no cuda:{max(indices)}, torch finds {_there()} GPUs")


def called(device: str) -> str:
    """What a device is called, once something was computed there. Raises RuntimeError and the like
    where nothing can be."""
    torch.ones(1, device=device).add_(1)
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def _name(other: "subprocess.Popen[bytes]", device: str) -> str:
    """The first that another rank says. Raises UserError where its device cannot be used."""
    said = receive(_pipe(other.stdout))
    facts = said[0] if said else {"fault": "its process ended, see the log"}
    if "fault" in facts:
        raise UserError(f"device: {device} cannot be used: {facts['fault']}")
    return str(facts["name"])


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe
