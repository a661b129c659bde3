"""How workers begin: forked on a CPU, where nothing asked for a GPU before; anew on a device."""

import subprocess
import sys
from textwrap import dedent

import pytest

from simulations import nursery

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
