"""The door that nodes come through: a TLS proxy that passes Flower's fleet API and nothing else.

    python -m server.gate --listen HOST:PORT --superlink HOST:PORT --root-certificates CA.crt
        --certificate server.crt --key server.key

A superlink has all its interfaces on one port, those that start runs and register nodes too, which
ask nobody who they are. Of what comes here, POST /v1/fleet/NAME goes on to the superlink, whose
certificate is verified, GET /health is answered, and all else is refused with 403 and a line in the
log. Who a node is, the superlink decides: the headers that say so go on as they came, and once, as
`server.once` says.

Bodies go through in pieces as they come. Nothing is tried twice, since nodes do that themselves on
502 (the superlink broke off), 503 (it is away) and 504 (it does not answer).
"""

import argparse
import asyncio
import logging
import re
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path

import httpx
import uvicorn
from starlette.responses import PlainTextResponse
from starlette.types import Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from fedlora.errors import UserError
from fedlora.untrusted import Log, plain
from server.once import Once, Unsigned, Used

# Seconds. Nodes give up after 30 by themselves: the gate's own are for those who do not.
STALL = 60.0  # for the next piece of a body, on either side, and for the superlink's answer
CONNECT = 5.0  # to the superlink
HEAD = 30.0  # until a connection has brought a whole head of a request
IDLE = 15  # until a connection without requests is closed; longer than nodes keep theirs, 5
REUSE = 2.0  # until one to the superlink is not used again; shorter than it keeps them, 5

# Flower's names are one word each. No dots, no %, no second slash: what could be read as another
# path further on does not match.
FLEET = re.compile(rb"/v1/fleet/[a-z][a-z0-9-]*")
REQUEST = {b"accept", b"accept-encoding", b"content-encoding", b"content-type", b"user-agent"}
HOP = {"connection", "keep-alive", "proxy-connection", "te", "trailer", "upgrade"}
HOP |= {"transfer-encoding", "proxy-authenticate", "proxy-authorization"}

log = logging.getLogger("fedlora.gate")
Headers = Iterable[tuple[bytes, bytes]]


class Gone(Exception):
    """The node broke off, or stopped in the middle of a body."""


class Gate:
    """The ASGI application. `client` knows the superlink's address and authority."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client, self._once = client, Once()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        method, path, query = scope["method"], scope["raw_path"], scope["query_string"]
        started = False

        async def answer(message: Message) -> None:
            nonlocal started
            started = True
            try:
                async with asyncio.timeout(STALL):
                    await send(message)
            except TimeoutError:
                raise Gone("does not read its answer") from None

        async def refuse(status: int, reason: str) -> None:
            """In words, where it is not too late for them; the connection ends in any case."""
            name = plain(path.decode("ascii", "replace"))
            log.warning("%s %s %s: %d, %s", who(scope), plain(method), name, status, reason)
            if not started:
                close = {"connection": "close"}
                await PlainTextResponse(f"{reason}\n", status, close)(scope, receive, send)

        if method == "GET" and path == b"/health":
            await PlainTextResponse("ok\n")(scope, receive, send)
        elif method != "POST" or query or not FLEET.fullmatch(path):
            await refuse(403, "refused: only nodes' own requests pass here")
        else:
            try:
                await self._pass(path.decode("ascii"), scope["headers"], receive, answer)
            except Unsigned as e:
                await refuse(401, f"refused: {e}")
            except Used as e:
                await refuse(503, f"refused: {e}")  # on which a node signs anew; 401 would end it
            except Gone as e:
                await refuse(408, f"the node {e}")
            except (httpx.ConnectError, httpx.ConnectTimeout) as e:
                log.error("the superlink is away: %s", e)
                await refuse(503, "the superlink is away")
            except httpx.TimeoutException:
                await refuse(504, f"the superlink does not answer within {STALL:g} s")
            except httpx.TransportError as e:
                log.error("the superlink broke off: %s", e or type(e).__name__)
                await refuse(502, "the superlink broke off")

    async def _pass(self, path: str, headers: Headers, receive: Receive, send: Send) -> None:
        """One request on, its answer back. Raises Unsigned, Used, Gone and httpx.TransportError."""
        mark, used = self._once.take(headers), False

        def whole() -> None:
            nonlocal used
            used = True

        body = pieces(receive, whole)
        try:
            async with self._client.stream(
                "POST", path, headers=onward(headers), content=body
            ) as answer:
                used = not 400 <= answer.status_code < 500
                back = [(k, v) for k, v in answer.headers.raw if kept(k, answer.headers)]
                await send(
                    {"type": "http.response.start", "status": answer.status_code, "headers": back}
                )
                async for piece in answer.aiter_raw():
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._once.done(mark, used)


def onward(headers: Headers) -> list[tuple[bytes, bytes]]:
    """The headers of a request that go on: those of the content, and Flower's own. None about the
    connection or the way here, and above all not Host: the superlink is told its own name."""
    given = list(headers)
    names = {name for name, _ in given}
    # A body in chunks ends where they end, whatever length it says it has.
    length = set() if b"transfer-encoding" in names else {b"content-length"}
    passes = REQUEST | length
    return [(k, v) for k, v in given if k in passes or k.startswith(b"flwr-")]


def kept(name: bytes, headers: httpx.Headers) -> bool:
    """Whether a header of an answer goes on: it is not about the connection to the superlink."""
    named = {word.strip().lower() for word in headers.get("connection", "").split(",")}
    return name.decode("ascii").lower() not in HOP | named


async def pieces(receive: Receive, whole: Callable[[], None]) -> AsyncIterator[bytes]:
    """A request's body as it comes. The next piece is fetched once this one is on its way; `whole`
    is called before the last is. Raises Gone."""
    more = True
    while more:
        try:
            async with asyncio.timeout(STALL):
                message = await receive()
        except TimeoutError:
            raise Gone("stopped in the middle of its request") from None
        if message["type"] == "http.disconnect":
            raise Gone("broke off")
        more = message.get("more_body", False)
        if not more:
            whole()
        if message["body"]:
            yield message["body"]


def who(scope: Scope) -> str:
    host, port = scope["client"] or ("unknown", 0)
    return f"{host}:{port}"


class Protocol(H11Protocol):
    """A connection from outside, which is closed when no head of a request comes for HEAD to
    2 × HEAD seconds. uvicorn itself would wait for ever."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.loop.call_later(HEAD, self._look, None)

    def _look(self, seen: object) -> None:
        if self.transport.is_closing():
            return
        if self.cycle is seen and (self.cycle is None or self.cycle.response_complete):
            self.transport.abort()
        else:
            self.loop.call_later(HEAD, self._look, self.cycle)


async def serve(
    listen: tuple[str, int], superlink: str, authority: Path, certificate: Path, key: Path
) -> None:
    """Stand at `listen` until a signal ends it. Raises UserError where a file cannot be used."""
    try:
        verified = ssl.create_default_context(cafile=authority)
    except (OSError, ValueError) as e:
        raise UserError(f"--root-certificates {authority} cannot be used: {e}") from None
    client = httpx.AsyncClient(
        base_url=f"https://{superlink}",
        verify=verified,
        timeout=httpx.Timeout(STALL, connect=CONNECT),
        limits=httpx.Limits(keepalive_expiry=REUSE),  # as many connections as nodes need
        headers={"accept-encoding": "identity"},  # of a node that says nothing
        trust_env=False,  # no other proxy on the way
    )
    config = uvicorn.Config(
        Gate(client),
        *listen,
        http=Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,  # several lines a node and second
        proxy_headers=False,  # the log has who connected, not who they say they are
        server_header=False,
        date_header=False,
        timeout_keep_alive=IDLE,
        timeout_graceful_shutdown=5,
        ssl_certfile=certificate,
        ssl_keyfile=key,
    )
    try:
        config.load()
    except OSError as e:
        raise UserError(f"--certificate {certificate} or --key {key} cannot be used: {e}") from None
    async with client:
        await uvicorn.Server(config).serve()


def address(text: str) -> tuple[str, int]:
    """HOST:PORT, an IPv6 host in brackets."""
    host, _, port = text.rpartition(":")
    if not host or re.search(r"[/@?#\s]", host) or not port.isdecimal() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
    return host.strip("[]"), int(port)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser("python -m server.gate", description=__doc__.splitlines()[0])
    parser.add_argument("--listen", type=address, required=True, metavar="HOST:PORT")
    parser.add_argument("--superlink", required=True, metavar="HOST:PORT")
    parser.add_argument("--root-certificates", type=Path, required=True, metavar="CA.crt")
    parser.add_argument("--certificate", type=Path, required=True, metavar="server.crt")
    parser.add_argument("--key", type=Path, required=True, metavar="server.key")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, handlers=[Log("%(asctime)s %(levelname)s %(message)s")])
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line a request
    files = (given.root_certificates, given.certificate, given.key)
    try:
        address(given.superlink)
        asyncio.run(serve(given.listen, given.superlink, *files))
    except (argparse.ArgumentTypeError, UserError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
