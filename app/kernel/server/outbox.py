"""Answers that need no application, sent without displacing those that do."""

import asyncio
from collections import deque
from time import thread_time
from typing import Protocol

# Reading what is refused takes as long again.
_REFUSING_PART = 0.01


class Unanswered(Protocol):
    """A request that can be given a finished answer."""

    def take(self, answer: bytes) -> None: ...


class Outbox:
    """Refusals on their way out. While there is other work they get a small part of the event loop's time, so that
    refusing cannot displace what was let in: who has to wait for a refusal does not ask again meanwhile.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: deque[tuple[Unanswered, bytes]] = deque()
        self._is_awake = False
        self._sent_at = 0.0

    def put(self, exchange: Unanswered, answer: bytes) -> None:
        self._waiting.append((exchange, answer))
        if not self._is_awake:
            self._is_awake = True
            self._sent_at = thread_time()
            self._loop.call_soon(self._send_some)

    def _send_some(self) -> None:
        """Once in each turn of the loop, for a part of the computing time that the last turn took."""
        began = now = thread_time()
        ends = now + (began - self._sent_at) * _REFUSING_PART
        waiting = self._waiting
        while waiting:
            exchange, answer = waiting.popleft()
            exchange.take(answer)
            now = thread_time()
            if now >= ends:
                break
        self._sent_at = now
        self._is_awake = bool(waiting)
        if waiting:
            self._loop.call_soon(self._send_some)
