"""Run a module as a program on the pretended device: `python -m tests.pretended MODULE ARGUMENT…`.

Of the ARGUMENTS some will name the device, `pretended:0`. Runs must serve their clients in this
process (simulation.workers=0), since no other has the device.
"""

import os
import runpy
import sys
import traceback

from tests.pretended import device  # noqa: F401  # before anything else is imported


def allow() -> None:
    """Let configurations name the device."""
    from fedlora.config import Config
    from fedlora.config.simulation import Simulation

    Simulation.model_fields["device"].metadata.clear()  # its pattern
    Simulation.model_rebuild(force=True)
    Config.model_rebuild(force=True)


def main() -> int:
    """The module's exit code."""
    del sys.argv[0]
    allow()
    try:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(bool(end.code))
    except Exception:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # the autograd's thread of a device in Python cannot be joined
