"""Gives up a request that has not begun to answer in time."""

import asyncio
import re

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.kernel.errors import DeadlineExceeded
from app.kernel.settings import HttpSettings

_WAIT = re.compile(rb"(?:^|,)\s*wait=(\d{1,3})\s*(?:,|$)")
_MAX_WAIT_SECONDS = 30


class Deadline:
    """Stands behind the response cache, because what comes from memory needs no timer.

    The clock stops when the answer begins, so that a download or a stream may take its time. A caller that asks to wait
    (`Prefer: wait=N`, RFC 7240) gets that much more.
    """

    def __init__(self, app: ASGIApp, settings: HttpSettings) -> None:
        self._app = app
        self._seconds = settings.request_timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        seconds = self._seconds + _asked_to_wait(scope["found_headers"].get(b"prefer"))
        timer = asyncio.timeout(seconds)

        async def send_and_stop_clock(message: Message) -> None:
            if message["type"] == "http.response.start":
                timer.reschedule(None)
            await send(message)

        try:
            async with timer:
                await self._app(scope, receive, send_and_stop_clock)
        except TimeoutError as error:
            if timer.expired():
                raise DeadlineExceeded from error
            raise


def _asked_to_wait(prefer: bytes | None) -> int:
    found = _WAIT.search(prefer) if prefer else None
    return min(int(found[1]), _MAX_WAIT_SECONDS) if found else 0
