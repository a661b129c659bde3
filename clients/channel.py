"""The way from a node's process for one message to its resident trainer: gRPC on a Unix socket.

    <state-dir>/trainer/          only its owner may enter
        socket                    where the trainer listens
        token                     what a caller must show; made anew by every trainer
        lock                      held by whoever starts a trainer
        alive                     held by the trainer as long as it lives

One call carries one message: its first piece is a JSON object with Flower's context, the others are
the message as bytes; the reply comes back as bytes. No generated code is needed for that.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
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


def pieces(data: bytes) -> Iterator[bytes]:
    """The bytes cut to size; at least one piece."""
    view = memoryview(data)
    for start in range(0, max(len(view), 1), PIECE):
        yield bytes(view[start : start + PIECE])


def request(context: Mapping[str, Any], message: bytes) -> Iterator[bytes]:
    """The pieces of a call."""
    yield json.dumps(dict(context)).encode()
    yield from pieces(message)


def parse(request: Iterable[bytes]) -> tuple[dict[str, Any], bytes]:
    """(context, message) of a call's pieces."""
    first, *rest = request
    return json.loads(first), b"".join(rest)
