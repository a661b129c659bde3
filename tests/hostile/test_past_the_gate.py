"""Somebody on the network who looks for a way past the gate.

Promise: of what comes to the gate, POST /v1/fleet/NAME alone reaches the superlink, under the
superlink's own name, without a word about accounts.
"""

import asyncio
import re
from typing import Any

import httpx
from hypothesis import given, settings
from hypothesis import strategies as st

from server.gate import Gate
from tests.server.doors import signed

PIECES = [b"/", b"//", b"v1", b"fleet", b"control", b"runtime", b"start-run", b"pull-messages"]
PIECES += [
    b"..",
    b".",
    b"%2e%2e",
    b"%2f",
    b"\\",
    b"?",
    b"#",
    b";",
    b"%00",
    b"\x00",
    b" ",
    b"V1",
    b"\xc3\xa9",
]
RIGHT = b"/v1/fleet/pull-messages"


def spliced(at: int, length: int, piece: bytes) -> bytes:
    """The right path with something else in the place of a part of it."""
    return RIGHT[:at] + piece + RIGHT[at + length :]


PATHS = st.one_of(
    st.builds(
        spliced,
        st.integers(0, len(RIGHT)),
        st.integers(0, 3),
        st.lists(st.sampled_from(PIECES), max_size=3).map(b"".join),
    ),
    st.lists(st.sampled_from(PIECES), max_size=6).map(lambda x: b"/" + b"/".join(x)),
    st.binary(max_size=40),
    st.sampled_from([RIGHT, b"/v1/fleet/a", b"/health"]),
)
METHODS = st.sampled_from(["POST", "GET", "PUT", "CONNECT", "post", "OPTIONS", "POST /v1/fleet/x"])
HEADERS = st.lists(
    st.tuples(
        st.sampled_from(
            [b"authorization", b"cookie", b"host", b"flwr-x", b"x-forwarded-for", b"te"]
        ),
        st.binary(max_size=12).map(lambda b: bytes(c for c in b if 32 < c < 127)),
    ),
    max_size=4,
)


def reached(
    method: str, path: bytes, query: bytes, headers: list[tuple[bytes, bytes]]
) -> list[Any]:
    """What the superlink sees of one request to the gate."""
    seen: list[httpx.Request] = []

    def superlink(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, stream=httpx.ByteStream(b"ok"))

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        pass

    async def ask() -> None:
        transport = httpx.MockTransport(superlink)
        async with httpx.AsyncClient(base_url="https://superlink:1", transport=transport) as client:
            gate = Gate(client)  # which takes nothing that was signed before it
            own = [(k.encode(), v.encode()) for k, v in signed().items()]
            scope = {
                "type": "http",
                "method": method,
                "raw_path": path,
                "query_string": query,
                "headers": own + headers,
                "client": ("127.0.0.1", 1),
            }
            await gate(scope, receive, send)

    asyncio.run(ask())
    return seen


@given(METHODS, PATHS, st.sampled_from([b"", b"", b"a=b"]), HEADERS)
@settings(max_examples=600, deadline=None)
def test_nothing_else_reaches_the_superlink(
    method: str, path: bytes, query: bytes, headers: list[tuple[bytes, bytes]]
) -> None:
    """Methods, paths in any spelling, queries and headers, at random."""
    passes = method == "POST" and not query and re.fullmatch(rb"/v1/fleet/[a-z][a-z0-9-]*", path)
    seen = reached(method, path, query, headers)
    assert len(seen) == bool(passes)
    for request in seen:
        assert (request.method, request.url.raw_path) == ("POST", path)
        assert request.headers["host"] == "superlink:1"
        assert not {"authorization", "cookie", "x-forwarded-for", "te"} & request.headers.keys()
