"""A node's own secret, by which a server knows it again after it came back as another node.

    <state-dir>/identity    32 random bytes in hex, for the node's owner alone to read

It never leaves the node: a server is shown an HMAC of it over the run and the client, which says
nothing to any other run.
"""

import hashlib
import hmac
import secrets
from pathlib import Path

from fedlora import files

SIZE = 32  # bytes


def proof(state: Path, experiment: str, client: str) -> str:
    """What this node shows of itself in this run, in hex: the same as long as its disk lives."""
    said = f"{len(experiment)} {experiment} {client}"
    return hmac.new(_secret(state / "identity"), said.encode(), hashlib.sha256).hexdigest()


def _secret(path: Path) -> bytes:
    try:
        return bytes.fromhex(path.read_text("ascii"))
    except FileNotFoundError:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        files.write(path, secrets.token_hex(SIZE), 0o600)
        return bytes.fromhex(path.read_text("ascii"))
