"""Requests that came before, by the bytes of their heads: a client that polls sends the same ones each time."""

from typing import Any

LONGEST_KNOWN_HEAD = 2048
"""In bytes. What is longer is parsed each time."""

_MAX_REQUESTS = 4096


class KnownRequests:
    """What the application recognized in them; the one that was added first goes first.

    At most `size` of them, whose heads are short, so that no client fills the memory of the process.
    """

    def __init__(self, size: int = _MAX_REQUESTS) -> None:
        self._size = size
        self._requests: dict[bytes, Any] = {}
        self.get = self._requests.get

    def add(self, head: bytes, request: Any) -> None:
        """Has `get` return `request` for the bytes of `head`."""
        if self._size == 0:
            return
        if len(self._requests) >= self._size and head not in self._requests:
            del self._requests[next(iter(self._requests))]
        self._requests[head] = request
