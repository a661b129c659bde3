"""A supernode that gave up is no process any more."""

import subprocess
import sys

import pytest

GIVING_UP = """
import sys, threading
from types import ModuleType

def flower_supernode():
    threading.Thread(target=threading.Event().wait).start()  # as Flower's interface for apps
    {end}

module = ModuleType("flwr.supernode.cli.flower_supernode")
module.flower_supernode = flower_supernode
sys.modules[module.__name__] = module
from clients.supernode import main
main()
"""


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("return", 1),
        ("raise ConnectionError('given up')", 1),
        ("sys.exit(0)", 0),
        ("sys.exit(3)", 3),
        ("sys.exit('no')", 1),
    ],
)
def test_its_process_ends_with_it(end: str, code: int) -> None:
    """Though a thread of Flower's is still there; whoever starts nodes again sees the exit code."""
    command = [sys.executable, "-c", GIVING_UP.format(end=end)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
    assert ("given up" in done.stderr) == ("given up" in end)
