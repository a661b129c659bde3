"""What is wrong with a connection, where Flower itself has one sentence for everything."""

import datetime
import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from server.flower import Connection


def certificate(folder: Path, name: str) -> Path:
    """A self-signed certificate for 127.0.0.1 and its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    loopback = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    made = (
        x509.CertificateBuilder(subject, subject, key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([loopback]), False)
        .add_extension(x509.BasicConstraints(True, None), True)
        .sign(key, hashes.SHA256())
    )
    pem, private = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    path = folder / f"{name}.pem"
    path.write_bytes(
        made.public_bytes(pem) + key.private_bytes(pem, private, serialization.NoEncryption())
    )
    return path


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """The address of something that speaks TLS with the certificate `server`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate(tmp_path, "server"))
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    link, _ = listening.accept()
                except OSError:
                    return
                try:
                    context.wrap_socket(link, server_side=True).close()
                except OSError:
                    link.close()

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"


def test_a_wrong_root_certificate_is_told_from_a_superlink_that_is_away(
    served: str, tmp_path: Path
) -> None:
    """Nothing with the right one; who does not vouch with another; no file; and no server."""
    other = certificate(tmp_path, "other")
    assert Connection("near", served, tmp_path / "server.pem").fault() == ""
    assert "does not vouch for" in Connection("near", served, other).fault()
    assert "is no file" in Connection("near", served, tmp_path / "none.pem").fault()
    assert "cannot be reached" in Connection("near", "127.0.0.1:1", other).fault()


@pytest.mark.parametrize("address", ["", "nowhere", "localhost:http"])
def test_an_address_that_is_none_is_said(address: str) -> None:
    """An address without a port, or with a word for one."""
    assert "cannot be reached" in Connection("near", address, None).fault()
