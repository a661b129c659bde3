"""A node's key pair, by which the superlink knows it: made here, its private part never leaves."""

import base64
import os
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_private_key,
    ssh_key_fingerprint,
)

from fedlora.errors import UserError

CURVE = ec.SECP384R1()


def make(path: Path) -> Path:
    """Write a new private key, which its owner alone may read, and beside it the public one with
    `.pub` behind, whose path is returned. Raises UserError where one of them exists."""
    public = path.with_name(f"{path.name}.pub")
    key = ec.generate_private_key(CURVE)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    if public.exists():
        raise _exists(public)
    _write(path, private, 0o600)
    _write(public, key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH), 0o644)
    return public


def read(path: Path) -> ec.EllipticCurvePrivateKey:
    """Raises UserError where the key is missing, none that a node can use, or open to others."""
    try:
        mode = path.stat().st_mode
        data = path.read_bytes()
    except OSError as e:
        raise UserError(
            f"the key {path} cannot be read ({e.strerror}): correct --key, or make one by "
            "fedlora node key"
        ) from None
    if mode & 0o077:
        raise UserError(
            f"the key {path} is open to others (mode {mode & 0o777:o}): chmod 600 {path}; if "
            "somebody may have read it, make another"
        )
    try:
        key = load_ssh_private_key(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise UserError(
            f"{path} is no private key in OpenSSH's format, or has a passphrase: make one by "
            "fedlora node key"
        ) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != CURVE.name:
        raise UserError(f"{path} is not of the curve P-384: make one by fedlora node key")
    return key


def fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    """As `ssh-keygen -l` shows it."""
    digest = base64.b64encode(ssh_key_fingerprint(key, hashes.SHA256())).decode()
    return f"SHA256:{digest.rstrip('=')}"


def _write(path: Path, data: bytes, mode: int) -> None:
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:
        raise _exists(path) from None
    except OSError as e:
        raise UserError(f"{path} cannot be written ({e.strerror})") from None
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _exists(path: Path) -> UserError:
    return UserError(f"{path} exists, and a key is never overwritten: choose another path")
