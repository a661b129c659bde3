"""What a node signs is good for one request.

Flower's node signs the time, to the microsecond, anew for each request and for each attempt at it,
and nothing else: no path, no body. The superlink takes a time from 5 s ahead to 305 s ago, so that
whoever gets hold of a request's headers could send any other of that node's requests with them, as
often as they like. The gate lets a time of a key pass once.

A key and a time name a set of headers, and not the signature, of which anyone can make others that
are valid. The superlink compares the key's bytes and the time's text exactly, so no other spelling
is valid either; a header that is there twice, of which each side might read another, is refused.

A set counts as used from its arrival. It is taken back where the superlink did not have the request
whole, or refused it: so strangers, who have no key that it knows, fill no memory here. What was
used is kept for as long as the superlink could take it again.
"""

import base64
import binascii
import hashlib
import time
from collections.abc import Callable, Iterable
from datetime import datetime

KEY, TIME, SIGNATURE = b"flwr-public-key", b"flwr-timestamp", b"flwr-signature"
WINDOW = 311.0  # seconds: from 5 ahead to 305 ago, and one more
MOST = 1 << 20  # sets that are kept: of 1,000 nodes, 3 requests a second each

Headers = Iterable[tuple[bytes, bytes]]


class Unsigned(Exception):
    """The headers are none that a node sends."""


class Used(Exception):
    """They may have been used before; a node that made them now makes others and is let through."""


class Once:
    """Header sets of which each passes once.

    Args:
        clock: seconds, which only ever grow.
        wall: seconds since 1970.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._clock, self._began, self._born = clock, clock(), wall()
        self._open: set[bytes] = set()
        self._used: dict[bytes, float] = {}  # when each was answered, in that order

    def take(self, headers: Headers) -> bytes:
        """The mark of a set that passes now. Raises Unsigned and Used."""
        mark, signed = _mark(headers)
        now = self._clock()
        while self._used and next(iter(self._used.values())) < now - WINDOW:
            del self._used[next(iter(self._used))]
        if mark in self._open or mark in self._used:
            raise Used("these headers were used before")
        if signed < self._born and now < self._began + WINDOW:
            raise Used("these headers are older than this gate, and may have been used before it")
        if len(self._open) + len(self._used) >= MOST:
            raise Used("too many requests to tell whether these headers were used before")
        self._open.add(mark)
        return mark

    def done(self, mark: bytes, used: bool) -> None:
        """The request is over; whether the superlink may have done what it asked."""
        self._open.remove(mark)
        if used:
            self._used[mark] = self._clock()


def _mark(headers: Headers) -> tuple[bytes, float]:
    """A digest of the key and the time, and the time in seconds since 1970."""
    found: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in (KEY, TIME, SIGNATURE):
            if name in found:
                raise Unsigned(f"{name.decode()} is there twice")
            found[name] = value
    try:
        key = base64.b64decode(found[KEY], validate=True)
        said = found[TIME].decode("ascii")
        signed = datetime.fromisoformat(said)
        _ = found[SIGNATURE]
    except (KeyError, ValueError, binascii.Error):
        raise Unsigned("only signed requests pass here") from None
    if signed.tzinfo is None:
        raise Unsigned("the time has no zone")
    digest = hashlib.blake2b(len(key).to_bytes(8) + key + said.encode(), digest_size=16)
    return digest.digest(), signed.timestamp()
