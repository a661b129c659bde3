"""Make what a deployment's parties know each other by; what is there already is never touched.

    python deploy/certificates.py DIR NODE...

    DIR/ca/ca.key                    signs; nobody else needs it, keep it away from the machines
    DIR/superlink/server.{crt,key}   the superlink's, for the names in $NAMES (by commas)
    DIR/gate/server.{crt,key}        the gate's, for those in $GATE_NAMES: where nodes look for it
    DIR/secret/superexec             the superlink and the superexec share it
    DIR/NODE/node.key                one a node
    DIR/public/ca.crt, NODE.pub      no secrets: what the others are verified with

Secrets are readable by their owner alone. For certificates that a consortium's own authority
signs, put them in place before this runs.
"""

import ipaddress
import os
import secrets
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedlora import files

CURVE = ec.SECP384R1()
VALID = timedelta(days=365)  # of the superlink's certificate; the authority's: ten times that


def main() -> None:
    root, nodes = Path(sys.argv[1]), sys.argv[2:]
    for part in ("ca", "superlink", "gate", "secret", "public", *nodes):
        (root / part).mkdir(parents=True, exist_ok=True)
    authority(root / "ca/ca.key", root / "public/ca.crt")
    server(root, "superlink", os.environ.get("NAMES", "superlink,localhost,127.0.0.1"))
    server(root, "gate", os.environ.get("GATE_NAMES", "gate,localhost,127.0.0.1"))
    if not (root / "secret/superexec").exists():
        files.write(root / "secret/superexec", secrets.token_hex(32), 0o600)
    for node in nodes:
        key = root / node / "node.key"
        if not key.exists():
            subprocess.run(["fedlora", "node", "key", key], check=True)
        public = key.with_name("node.key.pub").read_text("ascii")
        files.write(root / f"public/{node}.pub", public)


def authority(key_file: Path, certificate_file: Path) -> None:
    """A certificate authority of our own, unless there is one."""
    if certificate_file.exists():
        return
    key = ec.generate_private_key(CURVE)
    name = "fedlora deployment CA"
    made = signed(
        builder(name, name, key.public_key(), 10 * VALID),
        [
            (x509.BasicConstraints(ca=True, path_length=0), True),
            (usage(signs_certificates=True), True),
            (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False),
        ],
        key,
    )
    files.write(key_file, private(key), 0o600)
    files.write(certificate_file, made)


def server(root: Path, role: str, given: str) -> None:
    """A server's key and certificate, unless they are there. The certificate needs the names as
    alternative names: clients look at nothing else."""
    if (root / role / "server.crt").exists():
        return
    names = [name.strip() for name in given.split(",") if name.strip()]
    if not (root / "ca/ca.key").exists():
        sys.exit(
            f"error: {root}/public/ca.crt is there but not its key, {root}/ca/ca.key: put the "
            f"{role}'s own certificate into {root}/{role}, or remove ca.crt to begin anew"
        )
    issuer_key = serialization.load_pem_private_key((root / "ca/ca.key").read_bytes(), None)
    issuer = x509.load_pem_x509_certificate((root / "public/ca.crt").read_bytes())
    assert isinstance(issuer_key, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(CURVE)
    common = str(issuer.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)
    made = signed(
        builder(names[0], common, key.public_key(), VALID),
        [
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (usage(signs_certificates=False), True),
            (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
            (x509.SubjectAlternativeName([alternative(name) for name in names]), False),
            (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False),
            (x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), False),
        ],
        issuer_key,
    )
    files.write(root / role / "server.key", private(key), 0o600)
    files.write(root / role / "server.crt", made)


def builder(
    subject: str, issuer: str, key: ec.EllipticCurvePublicKey, valid: timedelta
) -> x509.CertificateBuilder:
    """The part that every certificate has."""
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))  # for clocks that are behind
        .not_valid_after(now + valid)
    )


def usage(signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def alternative(name: str) -> x509.GeneralName:
    """An address as such, all else as a host name."""
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def private(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()


def signed(
    builder: x509.CertificateBuilder,
    extensions: list[tuple[x509.ExtensionType, bool]],
    by: ec.EllipticCurvePrivateKey,
) -> str:
    """The certificate as PEM. Each extension comes with whether a reader must understand it."""
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(by, hashes.SHA384()).public_bytes(serialization.Encoding.PEM).decode()


if __name__ == "__main__":
    main()
