"""Work that nobody waits for any more stops before its next pass through the model."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class Cancelled(BaseException):
    """Who asked has gone. No `Exception`, so that nobody takes it for a failure of the work."""


_gone: ContextVar[Callable[[], bool]] = ContextVar("gone", default=lambda: False)


@contextmanager
def when(gone: Callable[[], bool]) -> Iterator[None]:
    """Inside the block `check` asks `gone`."""
    token = _gone.set(gone)
    try:
        yield
    finally:
        _gone.reset(token)


def check() -> None:
    """Raises Cancelled where nobody waits any more."""
    if _gone.get()():
        raise Cancelled
