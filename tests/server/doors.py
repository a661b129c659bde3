"""A gate in a process, with a stand-in for its superlink: real sockets on loopback, with TLS."""

import base64
import contextlib
import hashlib
import http.client
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

MEGA = 1 << 20


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that vouches for itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, folder.name)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        .sign(key, hashes.SHA256())
    )
    folder.mkdir()
    (folder / "crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    (folder / "key").write_bytes(private)
    return folder / "crt", folder / "key"


def signed(key: str = "a node's") -> dict[str, str]:
    """Headers as a node makes them for one request; the stand-in looks at no signature."""
    return {
        "flwr-public-key": base64.b64encode(key.encode()).decode(),
        "flwr-timestamp": datetime.now(UTC).isoformat(),
        "flwr-signature": "abc=",
    }


class Superlink(ThreadingHTTPServer):
    """A stand-in for one: takes down what reaches it, and answers with the digest of what it read,
    or as `answer` does."""

    daemon_threads = True

    def __init__(self, files: tuple[Path, Path], port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*files)
        self.socket = context.wrap_socket(self.socket, server_side=True)
        self.seen: list[tuple[str, dict[str, str]]] = []
        self._links: list[socket.socket] = []
        self.answer: Callable[[Handler], None] = Handler.digest
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}).start()

    def get_request(self) -> tuple[socket.socket, Any]:
        link, peer = super().get_request()
        self._links.append(link)
        return link, peer

    def handle_error(self, *_: object) -> None:
        """Connections that break are what some of the tests are about."""

    def stop(self) -> None:
        """Gone, with all its connections."""
        self.shutdown()
        self.server_close()
        for link in self._links:
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Superlink

    def do_POST(self) -> None:
        headers = {k.lower(): v for k, v in self.headers.items()}
        self.server.seen.append((self.path, headers))
        self.server.answer(self)

    do_GET = do_POST

    def digest(self) -> None:
        left, sha = int(self.headers.get("content-length", 0)), hashlib.sha256()
        while left and (piece := self.rfile.read(min(left, MEGA))):
            sha.update(piece)
            left -= len(piece)
        self.reply(sha.hexdigest().encode())

    def reply(self, body: bytes, times: int = 1) -> None:
        self.send_response(200)
        self.send_header("content-type", "application/protobuf")
        self.send_header("content-length", str(len(body) * times))
        self.send_header("connection", "keep-alive, x-between")
        self.send_header("x-between", "gate and superlink")
        self.end_headers()
        for _ in range(times):
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing: pytest's output is for failures."""


class Door:
    """A gate in a process of its own, and a node's side of it."""

    def __init__(self, folder: Path, superlink: int, authority: Path) -> None:
        self.certificate, key = certificate(folder / "gate")
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = int(probe.getsockname()[1])
        self._log = folder / "gate.log"
        command = [sys.executable, "-m", "server.gate", f"--listen=127.0.0.1:{self.port}"]
        command += [f"--superlink=127.0.0.1:{superlink}", f"--root-certificates={authority}"]
        command += [f"--certificate={self.certificate}", f"--key={key}"]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        until = time.monotonic() + 60
        while "running on" not in self.log:
            assert self.process.poll() is None and time.monotonic() < until, self.log
            time.sleep(0.05)

    @property
    def log(self) -> str:
        return self._log.read_text()

    def link(self) -> ssl.SSLSocket:
        context = ssl.create_default_context(cafile=str(self.certificate))
        plain = socket.create_connection(("127.0.0.1", self.port), 20)
        return context.wrap_socket(plain, server_hostname="127.0.0.1")

    def ask(
        self,
        method: str,
        target: str,
        body: object = b"",
        headers: dict[str, str] | None = None,
    ) -> tuple[http.client.HTTPResponse, bytes]:
        """The target is sent as it stands, with a signature of now unless the headers have one."""
        connection = http.client.HTTPConnection("127.0.0.1")
        connection.sock = self.link()
        given = signed() | (headers or {})
        connection.request(method, target, body, given)  # type: ignore[arg-type]
        answer = connection.getresponse()
        read = answer.read()
        connection.close()
        return answer, read

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(20)


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[tuple[Superlink, Door]]:
    """A superlink's stand-in and the gate before it, until both are stopped."""
    files = certificate(folder / "superlink")
    superlink = Superlink(files)
    door = Door(folder, superlink.server_address[1], files[0])
    yield superlink, door
    door.stop()
    superlink.stop()
