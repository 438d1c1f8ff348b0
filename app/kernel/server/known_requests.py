"""Requests that came before, by the bytes of their heads: a client that polls sends the same ones each time."""

from typing import Any, Protocol

from app.kernel.headers.response_head import Finished
from app.kernel.http.prepared_problem import Refused

LONGEST_KNOWN_HEAD = 2048
"""In bytes. What is longer is parsed each time."""

_MAX_REQUESTS = 4096
_MAX_REQUESTS_OF_TOKEN = 64


class KnownRequest(Protocol):
    """What the edge of the application recognized in a request."""

    @property
    def token(self) -> bytes: ...


class RequestDecider(Protocol):
    """What decides about a request before it gets a task (`kernel.middleware.edge`)."""

    def decide(self, scope: Any) -> Finished | Refused | None: ...

    def repeatable(self, scope: Any) -> KnownRequest | None: ...

    def answer(self, request: Any) -> Finished | None: ...


class KnownRequests:
    """The one that was added first goes first, of the same token if that has many.

    At most `size` of them, whose heads are short, and 64 of a token, so that no client fills the memory of the process
    or makes the others' go.
    """

    def __init__(self, size: int = _MAX_REQUESTS) -> None:
        self._size = size
        self._requests: dict[bytes, KnownRequest] = {}
        self._heads_of: dict[bytes, dict[bytes, None]] = {}
        self.get = self._requests.get

    def add(self, head: bytes, request: KnownRequest) -> None:
        """Has `get` return `request` for the bytes of `head`."""
        if self._size == 0 or head in self._requests:
            return
        of_token = self._heads_of.get(request.token, {})
        if len(of_token) >= _MAX_REQUESTS_OF_TOKEN:
            self._remove(next(iter(of_token)))
        elif len(self._requests) >= self._size:
            self._remove(next(iter(self._requests)))
        self._requests[head] = request
        self._heads_of.setdefault(request.token, {})[head] = None

    def _remove(self, head: bytes) -> None:
        token = self._requests.pop(head).token
        heads = self._heads_of[token]
        del heads[head]
        if not heads:
            del self._heads_of[token]
