"""Long computations of requests, in a few threads that callers share fairly.

asyncio's own threads serve files, names and logs too: what fills them for seconds stops everything else in the process.
"""

import asyncio
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from prometheus_client import Gauge

from app.kernel.errors import AppError
from app.kernel.fairness.callers import caller_key
from app.kernel.fairness.disconnects import ClientGone, when_client_goes
from app.kernel.fairness.slots import FairSlots

T = TypeVar("T")

# At 19 a busy neighbour would be enough to keep these computations from being done.
_NICER = 5


class FairThreads:
    """One for each kind of work in a process. A slot is held until its thread is done, even if the client has gone."""

    def __init__(
        self,
        name: str,
        threads: int,
        *,
        queue: int,
        overloaded: Callable[[], AppError],
        per_caller: int | None = None,
        lends_idle: bool = False,
        gauge: Gauge | None = None,
    ) -> None:
        """At most `queue` computations wait, and of one caller at most `per_caller` wait or run; `overloaded` makes the
        error for further ones. `lends_idle` is that of `FairSlots`. `gauge` shows how many wait or run.
        """
        self.size = threads + queue
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name, initializer=_step_back)
        self._turns = FairSlots(threads, lends_idle=lends_idle)
        self._overloaded = overloaded
        self._per_caller = per_caller
        self._gauge = gauge
        self._used = 0
        self._by_caller: Counter[Hashable] = Counter()

    async def run(self, work: Callable[[], T]) -> T:
        """The result of `work`.

        Raises:
            ClientGone: the client went away before its turn came. And what `overloaded` makes.
        """
        caller = caller_key()
        self._enter(caller)
        try:
            if not self._turns.try_acquire(caller):
                await self._wait_for_turn(caller)
        except BaseException:
            self._leave(caller)
            raise
        future = self._pool.submit(work)
        loop = asyncio.get_running_loop()
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._end_turn, caller))
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Waits for what runs."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    async def _wait_for_turn(self, caller: Hashable) -> None:
        turn = self._turns.wait(caller)
        is_dropped = False

        def drop() -> None:
            nonlocal is_dropped
            is_dropped = turn.cancel()

        with when_client_goes(drop):
            try:
                await turn
            except asyncio.CancelledError:
                self._turns.withdraw(caller, turn)
                if is_dropped:
                    raise ClientGone from None
                raise

    def _end_turn(self, caller: Hashable) -> None:
        self._turns.release(caller)
        self._leave(caller)

    def _enter(self, caller: Hashable) -> None:
        if self._used >= self.size:
            raise self._overloaded()
        if self._per_caller is not None:
            if self._by_caller[caller] >= self._per_caller:
                raise self._overloaded()
            self._by_caller[caller] += 1
        self._used += 1
        if self._gauge is not None:
            self._gauge.inc()

    def _leave(self, caller: Hashable) -> None:
        self._used -= 1
        if self._per_caller is not None:
            self._by_caller[caller] -= 1
            if not self._by_caller[caller]:
                del self._by_caller[caller]
        if self._gauge is not None:
            self._gauge.dec()


def available_cores() -> int:
    """Those that this process may use, which is what a container or taskset leaves it."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _step_back() -> None:
    """On a core that both want, the event loop gets three quarters and goes first; what it does takes microseconds."""
    if sys.platform == "linux":
        # Linux takes a thread for a process here; elsewhere this would slow the whole process down.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + _NICER)
