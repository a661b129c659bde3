"""How workers begin: forked on a CPU, where nothing asked for a GPU before; anew on a device."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from textwrap import dedent
from typing import Any
from unittest.mock import Mock

import pytest

from simulations import nursery
from simulations.pool import Pool
from simulations.worker import serve

# Functions that make no context and count no GPUs: what torch was built with.
HARMLESS = {"_is_compiled", "current_accelerator"}

CHILD = """
    import importlib, sys, types
    import torch
    asked = []
    def watched(name, function):
        def call(*args, **kwargs):
            asked.append(name)
            return function(*args, **kwargs)
        return call
    for module in (torch.cuda, torch.accelerator):
        for name, value in list(vars(module).items()):
            if isinstance(value, types.FunctionType | types.BuiltinFunctionType):
                setattr(module, name, watched(name, value))
    importlib.import_module(sys.argv[1])
    print("bitsandbytes" in sys.modules, "transformers" in sys.modules, *asked)
"""


def test_what_workers_are_forked_from_asked_no_gpu_anything() -> None:
    (preloaded,) = nursery.PRELOADED
    done = subprocess.run(
        [sys.executable, "-c", dedent(CHILD), preloaded], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    quantised, loaded, *asked = done.stdout.split()
    assert (quantised, loaded) == ("False", "True")
    assert set(asked) <= HARMLESS


@pytest.mark.parametrize(("device", "method"), [("cpu", "forkserver"), ("cuda", "spawn")])
def test_workers_on_a_device_are_not_forked(device: str, method: str) -> None:
    assert nursery.context(device).get_start_method() == method


def test_each_worker_sees_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """With more workers than GPUs in turn; nothing is said to those on a CPU."""
    given: list[object] = []

    class Context:
        Pipe = staticmethod(multiprocessing.Pipe)

        def Process(self, target: object, args: tuple[object, ...], daemon: bool) -> Any:
            given.append(args[-1])
            return Mock()

    monkeypatch.setattr(nursery, "context", lambda device: Context())
    for number, pool in ((0, Pool(3, 1, "cuda", ["4", "7"])), (2, Pool(3, 1))):
        for i in range(number, 3):
            thread = threading.Thread(target=pool._start, name=f"worker-{i}")
            thread.start()
            thread.join()
    assert given == ["4", "7", "4", None]


def test_a_worker_sees_its_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    ours, theirs = multiprocessing.Pipe()
    ours.close()  # so it ends at once
    handler = signal.getsignal(signal.SIGINT)
    try:
        serve(theirs, 1, False, "2")
    finally:
        signal.signal(signal.SIGINT, handler)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2"
