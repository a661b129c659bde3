"""The gate before a superlink, with real sockets: what it passes, what it refuses, and what is left
when something breaks."""

import asyncio
import hashlib
import http.client
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
import uvicorn
from starlette.types import Message

from server import gate
from tests.server.doors import MEGA, Door, Handler, Superlink, certificate, opened, signed

PULL = "/v1/fleet/pull-messages"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Superlink, Door]]:
    with opened(tmp_path_factory.mktemp("gate")) as both:
        yield both


@pytest.fixture
def superlink(pair: tuple[Superlink, Door]) -> Superlink:
    pair[0].seen.clear()
    pair[0].answer = Handler.digest
    return pair[0]


@pytest.fixture
def door(pair: tuple[Superlink, Door]) -> Door:
    return pair[1]


def test_a_nodes_request_passes_whole(superlink: Superlink, door: Door) -> None:
    """Path, body, type and the node's signature arrive; the superlink's answer comes back."""
    sent = {"content-type": "application/protobuf", **signed()}
    answer, body = door.ask("POST", PULL, b"hello", sent)
    assert (answer.status, body) == (200, hashlib.sha256(b"hello").hexdigest().encode())
    assert answer.headers["content-type"] == "application/protobuf"
    ((path, headers),) = superlink.seen
    assert path == PULL and sent.items() <= headers.items()


def test_headers_about_the_way_stay_behind(superlink: Superlink, door: Door) -> None:
    """The superlink hears its own name as Host, nothing of who a node says it is or of accounts;
    and of what a connection's two ends tell each other nothing crosses, in either direction."""
    sent = {
        "Host": "elsewhere?",
        "Connection": "keep-alive, x-mine",
        "X-Mine": "1",
        "X-Forwarded-For": "1.2.3.4",
        "Forwarded": "for=1.2.3.4",
        "Authorization": "Bearer of a token",
        "Cookie": "a=b",
        "Upgrade": "websocket",
    }
    answer, _ = door.ask("POST", PULL, b"", sent)
    ((_, headers),) = superlink.seen
    assert headers["host"] == f"127.0.0.1:{superlink.server_address[1]}"
    left = {"x-mine", "x-forwarded-for", "forwarded", "authorization", "cookie", "upgrade"}
    assert not left & headers.keys()
    assert "x-mine" not in headers["connection"] and "x-between" not in answer.headers


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("POST", "/v1/control/start-run"),
        ("POST", "/v1/runtime/pull-app-inputs"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
        ("POST", "/"),
        ("POST", "/health"),
        ("GET", PULL),
        ("OPTIONS", "*"),
        ("POST", "/v1/fleet"),
        ("POST", "/v1/fleet/"),
        ("POST", f"{PULL}/"),
        ("POST", f"{PULL}?x=1"),
        ("POST", f"{PULL}#x"),
        ("POST", f"{PULL};x"),
        ("POST", "/v1/fleet/../control/start-run"),
        ("POST", "/v1/fleet/..%2fcontrol/start-run"),
        ("POST", "/v1/fleet/%2e%2e/control/start-run"),
        ("POST", "/v1/fleet/%252e%252e/control/start-run"),
        ("POST", "/v1/fleet/..\\control\\start-run"),
        ("POST", "/v1/fleet/pull-messages%00"),
        ("POST", "/v1/fleet/./pull-messages"),
        ("POST", "//v1/fleet/pull-messages"),
        ("POST", "/v1//fleet/pull-messages"),
        ("POST", "/V1/FLEET/pull-messages"),
        ("POST", "/v1/%66leet/pull-messages"),
        ("POST", "https://127.0.0.1/v1/fleet/pull-messages"),
        ("POST", "https://127.0.0.1/v1/control/start-run"),
    ],
)
def test_all_else_is_refused(superlink: Superlink, door: Door, method: str, target: str) -> None:
    """403, nothing of it reaches the superlink, and the log has who wanted what."""
    answer, _ = door.ask(method, target, b"body", {"X-Secret": "header"})
    assert answer.status == 403 and not superlink.seen
    assert f"{method} {target.partition('?')[0]}: 403" in door.log
    assert "127.0.0.1:" in door.log and "header" not in door.log


def test_one_request_cannot_hide_another(superlink: Superlink, door: Door) -> None:
    """A body in chunks that also has a length is one request further on too."""
    hidden = b"POST /v1/control/start-run HTTP/1.1\r\nHost: x\r\n\r\n"
    head = f"POST {PULL} HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in signed().items())
    with door.link() as link:
        link.sendall(head.encode() + b"\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(hidden), hidden))
        assert link.recv(100).startswith(b"HTTP/1.1 ")
    assert [path for path, _ in superlink.seen] == [PULL]
    assert "content-length" not in superlink.seen[0][1]


def test_health_is_the_gates_own(superlink: Superlink, door: Door) -> None:
    """It is answered without the superlink."""
    answer, _ = door.ask("GET", "/health")
    assert answer.status == 200 and not superlink.seen


def test_large_bodies_pass_in_pieces(superlink: Superlink, door: Door) -> None:
    """50 MB in and 50 MB out arrive whole and are not held: the gate grows by far less."""
    door.ask("POST", PULL)  # what the first request loads is no growth
    process, peak, piece, over = (
        psutil.Process(door.process.pid),
        0,
        bytes(range(256)) * 4096,
        False,
    )
    before = process.memory_info().rss

    def watch() -> None:
        nonlocal peak
        while not over:
            peak = max(peak, process.memory_info().rss)
            time.sleep(0.005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        size = {"content-length": str(50 * len(piece))}
        _, read = door.ask("POST", PULL, (piece for _ in range(50)), size)
        assert read == hashlib.sha256(piece * 50).hexdigest().encode()
        superlink.answer = lambda handler: handler.reply(piece, 50)
        _, read = door.ask("POST", PULL)
        assert read == piece * 50
    finally:
        over = True
        watcher.join()
    assert 0 < peak - before < 20 * MEGA


def test_half_an_answer_does_not_look_whole(superlink: Superlink, door: Door) -> None:
    """Where the superlink breaks off in an answer, so does the gate."""

    def half(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("content-length", "1000")
        handler.end_headers()
        handler.wfile.write(b"x" * 500)
        handler.close_connection = True

    superlink.answer = half
    with pytest.raises((http.client.IncompleteRead, OSError)):
        door.ask("POST", PULL)
    assert "the superlink broke off" in door.log


def test_a_broken_superlink_is_a_502(superlink: Superlink, door: Door) -> None:
    """A connection that ends without an answer: the node is told, and nothing is tried again."""
    superlink.answer = lambda handler: setattr(handler, "close_connection", True)
    answer, body = door.ask("POST", PULL)
    assert (answer.status, body) == (502, b"the superlink broke off\n")
    assert len(superlink.seen) == 1


def test_a_superlink_that_is_away_is_a_503(tmp_path: Path) -> None:
    """The gate stays, says so, and passes again once the superlink is back."""
    files = certificate(tmp_path / "superlink")
    superlink = Superlink(files)
    door = Door(tmp_path, superlink.server_address[1], files[0])
    try:
        assert door.ask("POST", PULL)[0].status == 200
        superlink.stop()
        answer, body = door.ask("POST", PULL)
        assert (answer.status, body) == (503, b"the superlink is away\n")
        assert door.ask("GET", "/health")[0].status == 200
        superlink = Superlink(files, superlink.server_address[1])
        assert door.ask("POST", PULL)[0].status == 200
    finally:
        door.stop()
        superlink.stop()


def test_a_superlink_of_another_authority_gets_nothing(tmp_path: Path) -> None:
    """Whose certificate the gate does not know is no superlink: 503, and no word to it."""
    other, _ = certificate(tmp_path / "other")
    superlink = Superlink(certificate(tmp_path / "superlink"))
    door = Door(tmp_path, superlink.server_address[1], other)
    try:
        assert door.ask("POST", PULL, b"secret")[0].status == 503 and not superlink.seen
        assert "CERTIFICATE_VERIFY_FAILED" in door.log
    finally:
        door.stop()
        superlink.stop()


def test_a_node_that_stops_in_its_request_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wait for the next piece of a body has an end."""

    async def never() -> Message:
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    async def read() -> list[bytes]:
        return [piece async for piece in gate.pieces(never, lambda: None)]

    monkeypatch.setattr(gate, "STALL", 0.05)
    with pytest.raises(gate.Gone, match="in the middle"):
        asyncio.run(read())


@pytest.mark.parametrize("said", [b"", b"POST /v1/fl"], ids=["nothing", "half a head"])
def test_a_connection_that_asks_for_nothing_is_closed(
    monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    """Without a whole head of a request in time it is gone."""

    async def open_one() -> bytes:
        config = uvicorn.Config(
            gate.Gate(httpx.AsyncClient()), port=0, http=gate.Protocol, ws="none", log_config=None
        )
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        reader, writer = await asyncio.open_connection(*server.servers[0].sockets[0].getsockname())
        writer.write(said)
        try:
            return await asyncio.wait_for(reader.read(), 20)
        finally:
            writer.close()
            server.should_exit = True
            await serving

    monkeypatch.setattr(gate, "HEAD", 0.1)
    assert asyncio.run(open_one()) == b""


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    """Exit code 2, with the option that is wrong."""
    command = [sys.executable, "-m", "server.gate", "--listen=127.0.0.1:0", "--superlink=a:1"]
    command += [f"--{name}={tmp_path}/none" for name in ("root-certificates", "certificate", "key")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "--root-certificates" in done.stderr
    assert "Traceback" not in done.stderr
