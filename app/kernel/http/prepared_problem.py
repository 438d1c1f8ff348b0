"""Problem responses that are made in advance, for refusals of which there may be ten thousand a second."""

from collections.abc import Sequence
from typing import NamedTuple

import orjson
from starlette.types import Send

from app.kernel.errors import PROBLEM_MEDIA_TYPE, AppError
from app.kernel.headers.response_head import PreparedHead

_ID = "the-id-of-the-request"


class PreparedProblem:
    """The response to `error`, finished but for the request's id and `Retry-After`. `headers` go with it."""

    def __init__(self, error: AppError, headers: Sequence[tuple[bytes, bytes]]) -> None:
        self._parts = orjson.dumps(error.as_problem(_ID)).split(_ID.encode())
        self._status = error.status
        own = ((b"content-type", PROBLEM_MEDIA_TYPE.encode()), (b"cache-control", b"no-store"))
        self._head = PreparedHead(error.status, (*own, *headers))

    def raw(self, request_id: bytes, retry_after: int) -> bytes:
        """All of it as it goes over the wire, in HTTP/1.1. `retry_after` is in seconds."""
        body = request_id.join(self._parts)
        return b"%bretry-after: %d\r\ncontent-length: %d\r\nx-request-id: %b\r\n\r\n%b" % (
            self._head.rendered,
            retry_after,
            len(body),
            request_id,
            body,
        )

    async def send(self, request_id: bytes, retry_after: int, send: Send, *more_headers: tuple[bytes, bytes]) -> None:
        body = request_id.join(self._parts)
        headers = [
            *self._head.headers,
            (b"retry-after", b"%d" % retry_after),
            (b"content-length", b"%d" % len(body)),
            *more_headers,
        ]
        await send({"type": "http.response.start", "status": self._status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class Refused(NamedTuple):
    """A request that finds neither a slot nor room in the queue. Nothing else is done for it, not even a line in the
    log: there may be ten thousand a second.
    """

    problem: PreparedProblem
    request_id: bytes
    retry_after: int

    def raw(self) -> bytes:
        """The whole response as it goes over the wire."""
        return self.problem.raw(self.request_id, self.retry_after)

    async def send(self, send: Send) -> None:
        await self.problem.send(self.request_id, self.retry_after, send, (b"x-request-id", self.request_id))
