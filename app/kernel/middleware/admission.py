"""Lets in as many requests as can be worked on, lets a few wait shortly, and refuses the rest early and cheaply."""

import asyncio
import random
from collections import deque

from prometheus_client import Counter, Gauge
from starlette.types import ASGIApp, Receive, Scope, Send

from app.kernel.errors import Unavailable
from app.kernel.settings import HttpSettings

_in_flight = Gauge("app_admission_inflight", "Admitted requests.", multiprocess_mode="livesum")
_rejected = Counter("app_admission_rejected", "Refused requests.", ["reason"])

# These tell whether the process lives and what it does, so they must answer when nothing else can.
_ALWAYS_ADMITTED = frozenset({"/livez", "/readyz", "/metrics"})
_MAX_RETRY_AFTER = 3


class Overloaded(Unavailable):
    code = "overloaded"
    title = "The service works at its capacity"


class Admission:
    """A gate of `max_in_flight` places and `max_waiting` seats, left by the first come or after `max_wait` seconds."""

    def __init__(self, app: ASGIApp, settings: HttpSettings) -> None:
        self._app = app
        self._places = settings.max_in_flight
        self._seats = settings.max_waiting
        self._max_wait = settings.max_wait
        self._used = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    def sample(self) -> None:
        """Sets the gauge."""
        _in_flight.set(self._used)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in _ALWAYS_ADMITTED:
            await self._app(scope, receive, send)
            return
        if self._used >= self._places:
            await self._wait_for_place()
        else:
            self._used += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._leave()

    async def _wait_for_place(self) -> None:
        if len(self._waiting) >= self._seats:
            _rejected.labels("queue_full").inc()
            raise Overloaded(retry_after=random.randint(1, _MAX_RETRY_AFTER))  # noqa: S311 - jitter, not a secret
        place = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            async with asyncio.timeout(self._max_wait):
                await place
        except (TimeoutError, asyncio.CancelledError) as error:
            if place.done() and not place.cancelled():
                # The place came at the same moment; somebody else takes it.
                self._leave()
            elif place in self._waiting:
                self._waiting.remove(place)
            if isinstance(error, asyncio.CancelledError):
                raise
            _rejected.labels("waited_too_long").inc()
            raise Overloaded(retry_after=random.randint(1, _MAX_RETRY_AFTER)) from error  # noqa: S311

    def _leave(self) -> None:
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                # The place is handed over, so the number of used ones stays.
                place.set_result(None)
                return
        self._used -= 1
