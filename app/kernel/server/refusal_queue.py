"""Answers that need no application, sent without displacing those that do."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Hashable
from time import monotonic, thread_time
from typing import Protocol

# Refusals get 1 % of the time of a busy event loop.
_PART_OF_BUSY = 0.01
# Below 50 % utilisation they may use the idle time too.
_BUSY_PART = 0.5
_TICK_SECONDS = 0.005
_MOST_SAVED_SECONDS = 0.001


class Unanswered(Protocol):
    """A request that can be given a finished answer."""

    def take(self, answer: bytes) -> None: ...


class RefusalQueue:
    """Refusals on their way out. While there is other work they get a small part of the event loop's time, so that
    refusing cannot displace admitted requests: a client that waits for its refusal does not retry meanwhile. Clients
    take turns, so that many requests of one keep no other from its refusal.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        # By client, the next one first.
        self._waiting: OrderedDict[Hashable, deque[tuple[Unanswered, bytes]]] = OrderedDict()
        self._is_awake = False
        # Computing time that refusals may take now; below zero what the last one took too much.
        self._credit = _MOST_SAVED_SECONDS
        self._paid_at = monotonic()
        self._worked = thread_time()

    def put(self, cycle: Unanswered, answer: bytes, client: Hashable) -> None:
        self._waiting.setdefault(client, deque()).append((cycle, answer))
        if not self._is_awake:
            self._send_some()

    def _send_some(self) -> None:
        now, worked = monotonic(), thread_time()
        passed = now - self._paid_at
        # Between two refusals of one turn of the loop there is no time to see how busy it is.
        if passed >= _TICK_SECONDS:
            earned = passed * _PART_OF_BUSY + max(0.0, passed * _BUSY_PART - (worked - self._worked))
            self._credit = min(self._credit + earned, _MOST_SAVED_SECONDS)
            self._paid_at, self._worked = now, worked
        waiting = self._waiting
        while waiting and self._credit > 0:
            client, refusals = next(iter(waiting.items()))
            cycle, answer = refusals.popleft()
            if refusals:
                waiting.move_to_end(client)
            else:
                del waiting[client]
            cycle.take(answer)
            before, worked = worked, thread_time()
            self._credit -= worked - before
        self._is_awake = bool(waiting)
        if waiting:
            self._loop.call_later(_TICK_SECONDS, self._send_some)
