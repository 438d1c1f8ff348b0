"""One piece of work of a caller at a time, for what is too dear to run several times for the same caller."""

import asyncio
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from time import perf_counter
from weakref import WeakValueDictionary

from app.kernel.errors import TooManyRequests
from app.kernel.fairness.callers import OWN_WAIT_SECONDS, caller_var


class OneAtATime:
    """Work of one caller runs one by one; different callers do not wait for each other. One per process."""

    def __init__(self, *, max_wait: float = OWN_WAIT_SECONDS) -> None:
        self._max_wait = max_wait
        # A lock lives as long as a request holds it or waits for it.
        self._locks: WeakValueDictionary[Hashable, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def turn(self, caller: Hashable) -> AsyncIterator[None]:
        """Runs the block when no other one of the same caller runs.

        Raises:
            TooManyRequests: those before have taken too long.
        """
        lock = self._locks.setdefault(caller, asyncio.Lock())
        started = perf_counter()
        try:
            async with asyncio.timeout(self._max_wait):
                await lock.acquire()
        except TimeoutError as error:
            raise TooManyRequests("Requests of yours that take long are answered one by one.") from error
        finally:
            request = caller_var.get()
            if request is not None:
                request.waited += perf_counter() - started
        try:
            yield
        finally:
            lock.release()
