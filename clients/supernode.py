"""Flower's supernode, in a process that ends where Flower gives up.

When a connection breaks in a way that Flower does not try again, its main function ends, but the
thread of its interface for apps keeps the process: a node that is online nowhere, and that nothing
starts again, since it seems to be there.
"""

import os
import sys
import traceback
from importlib import import_module


def main() -> None:
    """`flower-supernode`, with its arguments; exit code 1 where it gave up."""
    sys.argv[0] = "flower-supernode"
    code = 1
    try:
        import_module("flwr.supernode.cli.flower_supernode").flower_supernode()
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else int(e.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
