"""By what the server knows a client again: its node's key, a proof of the node's own, the
operator's list.

    holder    the fingerprint of the node's key, as the superlink has it; where the superlink tells
              no keys (a simulation), the node's number
    proof     an HMAC of this run and client under a secret on the node's disk (`clients.secret`);
              the server keeps its SHA-256. It counts where the holder is another: a node without a
              registered key is given a new one at every start, and an owner may change its key.
    list      a TOML file that $FEDLORA_CLIENTS names at the server: films = "SHA256:…", or the line
              of a .pub file. Where there is one it decides alone.

A client id belongs to the holder that first became a member under it.
"""

import base64
import hashlib
import hmac
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import (
    load_pem_public_key,
    load_ssh_public_key,
    ssh_key_fingerprint,
)
from flwr.serverapp import Grid

from fedlora.errors import UserError

LIST = "FEDLORA_CLIENTS"


@dataclass(frozen=True)
class Claim:
    """Who a node is: its holder, and its proof as the server keeps it ("" for none)."""

    holder: str
    proof: str = ""

    def same_owner(self, other: "Claim") -> bool:
        """Whether that is the same owner: by holder, or by proof."""
        proven = bool(self.proof) and hmac.compare_digest(self.proof, other.proof)
        return self.holder == other.holder or proven


def claim(holder: str, proof: object) -> Claim:
    """A node's claim with the proof that it shows, if it is one."""
    if not (isinstance(proof, str) and 32 <= len(proof) <= 256):
        return Claim(holder)
    return Claim(holder, hashlib.sha256(proof.encode()).hexdigest())


def holders(grid: Grid) -> dict[int, str]:
    """By what the superlink knows each node that is there."""
    if nodes := getattr(grid, "get_nodes", None):
        return {node.node_id: _holder(node.node_id, node.public_key) for node in nodes()}
    return {node: _holder(node, b"") for node in grid.get_node_ids()}


def _holder(node: int, key: bytes) -> str:
    try:
        return _fingerprint(load_pem_public_key(key))
    except (ValueError, TypeError, UnsupportedAlgorithm):  # Flower's simulation has made-up keys
        return f"node {node}" if not key else f"key {hashlib.sha256(key).hexdigest()}"


def listed() -> dict[str, str] | None:
    """{client: fingerprint of its key} from the operator's list; None where there is none. Raises
    UserError where it cannot be used."""
    if not (name := os.environ.get(LIST)):
        return None
    path = Path(name)
    try:
        given: Mapping[str, object] = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as e:
        raise UserError(f"{LIST}: {path} cannot be read: {e}") from None
    found = {client: _listed(str(key)) for client, key in given.items()}
    if wrong := [client for client, key in found.items() if not key]:
        raise UserError(
            f"{LIST}: in {path} the key of {', '.join(wrong)} is neither a fingerprint (SHA256:…, "
            "as fedlora node key shows it) nor the line of a .pub file"
        )
    return found


def _listed(text: str) -> str:
    if text.startswith("SHA256:"):
        return text.strip().rstrip("=")
    try:
        return _fingerprint(load_ssh_public_key(text.encode()))
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return ""


def _fingerprint(key: object) -> str:
    """As `ssh-keygen -l` shows it."""
    digest = ssh_key_fingerprint(key, hashes.SHA256())  # type: ignore[arg-type]
    return f"SHA256:{base64.b64encode(digest).decode().rstrip('=')}"
