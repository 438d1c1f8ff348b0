"""What a part of the program far from the connection does when the client has gone that it works for, or when its
client has agreed to wait.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

from starlette.requests import ClientDisconnect


class ClientGone(ClientDisconnect):
    """The client no longer waits for the answer, and nothing is changed so far."""


class Watched(Protocol):
    """A request whose client is watched on demand."""

    def tell_when_gone(self, act: Callable[[], object] | None) -> None: ...

    def extend(self, seconds: float) -> None: ...


watched_var: ContextVar[Watched | None] = ContextVar("watched", default=None)


@contextmanager
def when_client_goes(act: Callable[[], object]) -> Iterator[None]:
    """Inside the block, `act` is called as soon as the client of the request at hand goes; at once if it has gone."""
    watched = watched_var.get()
    if watched is None:
        yield
        return
    watched.tell_when_gone(act)
    try:
        yield
    finally:
        watched.tell_when_gone(None)


def extend_deadline(seconds: float) -> None:
    """Gives the request at hand so much more time until its answer begins. For routes that wait on request alone."""
    watched = watched_var.get()
    if watched is not None:
        watched.extend(seconds)
