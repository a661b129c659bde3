"""A node's signed headers, sent again by somebody who got hold of them."""

import base64
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)
from flwr.proto.fleet_pb2 import PullMessagesRequest  # type: ignore[attr-defined]
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from tests.server.doors import Door, Handler, Superlink, opened, signed

PULL, PUSH = "/v1/fleet/pull-messages", "/v1/fleet/push-messages"
# Of the curve P-384's group.
ORDER = int(
    "ffffffffffffffffffffffffffffffffffffffffffffffff"
    "c7634d81f4372ddf581a0db248b0a77aecec196accc52973",
    16,
)
NAMES = {"flwr-public-key", "flwr-timestamp", "flwr-signature"}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Superlink, Door]]:
    with opened(tmp_path_factory.mktemp("replayed")) as both:
        yield both


@pytest.fixture
def key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


@pytest.fixture
def client(
    pair: tuple[Superlink, Door], key: ec.EllipticCurvePrivateKey
) -> Iterator[FleetHttpClient]:
    """A node's own, as Flower makes it, in front of the gate."""
    superlink, door = pair
    superlink.seen.clear()
    superlink.answer = lambda handler: handler.reply(b"")
    node = NodeAuthHttpInterceptor(key, key.public_key())
    address, trusted = f"127.0.0.1:{door.port}", door.certificate.read_bytes()
    with FleetHttpClient.from_server_address(address, False, trusted, [node]) as made:
        yield made


def captured(superlink: Superlink) -> dict[str, str]:
    return {k: v for k, v in superlink.seen[-1][1].items() if k in NAMES}


def test_headers_are_good_once(pair: tuple[Superlink, Door], client: FleetHttpClient) -> None:
    """What a node signed for one request goes with no other, of any kind or body; the node is told
    nothing that would end it, and what it signs anew passes."""
    superlink, door = pair
    client.PullMessages(PullMessagesRequest())
    headers = captured(superlink)
    assert headers.keys() == NAMES
    for path in (PULL, PUSH, "/v1/fleet/unregister-node"):
        answer, body = door.ask("POST", path, b"evil", headers)
        assert answer.status == 503 and b"used before" in body
    assert len(superlink.seen) == 1 and f"POST {PUSH}: 503" in door.log
    client.PullMessages(PullMessagesRequest())
    assert len(superlink.seen) == 2


def test_the_same_headers_at_the_same_time_pass_once(
    pair: tuple[Superlink, Door], client: FleetHttpClient
) -> None:
    """Of several that race, one."""
    superlink, door = pair
    headers = signed()
    with ThreadPoolExecutor(6) as threads:
        found = list(
            threads.map(lambda _: door.ask("POST", PULL, b"", headers)[0].status, range(6))
        )
    assert sorted(found) == [200] + [503] * 5 and len(superlink.seen) == 1


def test_no_other_spelling_passes(
    pair: tuple[Superlink, Door], client: FleetHttpClient, key: ec.EllipticCurvePrivateKey
) -> None:
    """Not the other signature that every signature of ECDSA has, which is as valid; not without one
    of the headers, or with one twice."""
    superlink, door = pair
    client.PullMessages(PullMessagesRequest())
    headers = captured(superlink)
    r, s = decode_dss_signature(base64.b64decode(headers["flwr-signature"]))
    other = encode_dss_signature(r, ORDER - s)
    key.public_key().verify(other, headers["flwr-timestamp"].encode(), ec.ECDSA(hashes.SHA256()))
    again = {**headers, "flwr-signature": base64.b64encode(other).decode()}
    assert door.ask("POST", PULL, b"", again)[0].status == 503
    for name in NAMES:
        assert door.ask("POST", PULL, b"", {**headers, name: "="})[0].status in (401, 503)
    with door.link() as link:
        lines = [f"{k}: {v}" for k, v in headers.items()]
        lines += ["flwr-timestamp: 2020-01-01T00:00:00+00:00", "content-length: 0", "host: x"]
        link.sendall("\r\n".join([f"POST {PULL} HTTP/1.1", *lines, "", ""]).encode())
        assert link.recv(100).startswith(b"HTTP/1.1 401")
    assert len(superlink.seen) == 1


def test_what_the_superlink_refused_was_not_used(
    pair: tuple[Superlink, Door], client: FleetHttpClient
) -> None:
    """Headers that the superlink does not accept are not kept: strangers fill no memory, and use up
    nobody's headers by guessing them."""
    superlink, door = pair
    client.PullMessages(PullMessagesRequest())
    headers = {**captured(superlink), "flwr-public-key": base64.b64encode(b"stranger").decode()}

    def refuse(handler: Handler) -> None:
        handler.send_response(401)
        handler.send_header("content-length", "0")
        handler.end_headers()

    superlink.answer = refuse
    assert door.ask("POST", PULL, b"", headers)[0].status == 401
    superlink.answer = Handler.digest
    assert [door.ask("POST", PULL, b"", headers)[0].status for _ in "ab"] == [200, 503]
