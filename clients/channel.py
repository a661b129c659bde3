"""The way from a node's process for one message to its resident trainer: gRPC on a Unix socket.

    <state-dir>/trainer/          only its owner may enter
        socket                    where the trainer listens
        token                     what a caller must show; made anew by every trainer
        lock                      held by whoever starts a trainer
        alive                     held by the trainer as long as it lives

One call carries one message and Flower's context, and the reply comes back, both in the pieces of
`clients.frames`. No generated code is needed for that.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SERVICE = "fedlora.Trainer"
METHOD = "Answer"
PIECE = 4 << 20  # bytes a piece: gRPC would refuse a whole adapter in one
OPTIONS = [("grpc.max_receive_message_length", PIECE + 4096), ("grpc.enable_http_proxy", 0)]
FAILED = "this client could not answer: its own log says more"  # all that leaves a node of that
LONGEST = 107  # bytes of a Unix socket's path


class Place:
    """The files of one node's trainer."""

    def __init__(self, state_dir: Path) -> None:
        self.folder = state_dir.expanduser().resolve() / "trainer"
        self.socket, self.token = self.folder / "socket", self.folder / "token"
        self.lock, self.alive = self.folder / "lock", self.folder / "alive"

    @property
    def address(self) -> str:
        """Raises ValueError where the path is longer than a Unix socket's may be."""
        if len(os.fsencode(self.socket)) > LONGEST:
            raise ValueError(
                f"{self.socket} is longer than the {LONGEST} bytes that a Unix socket's path may "
                "have: choose a shorter state-dir in the node's configuration"
            )
        return f"unix:{self.socket}"


def state_dir(node_config: Mapping[str, Any]) -> Path:
    """Where this node keeps what stays: its `state-dir`, or the user's state directory."""
    if "state-dir" in node_config:
        return Path(str(node_config["state-dir"]))
    return Path(os.environ.get("XDG_STATE_HOME", Path.home() / ".local/state")) / "fedlora"
