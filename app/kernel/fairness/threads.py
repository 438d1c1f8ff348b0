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
from functools import partial
from time import perf_counter
from typing import TypeVar

from prometheus_client import Gauge

from app.kernel.errors import AppError
from app.kernel.fairness.callers import caller_var
from app.kernel.fairness.disconnects import ClientGone, when_client_goes
from app.kernel.fairness.slots import FairSlots
from app.kernel.fairness.time_shares import TimeShares

T = TypeVar("T")

# At 19 a busy neighbour would be enough to keep these computations from being done.
_NICER = 5
# A caller that uses more than this part of a thread while others come is served behind them: ten levels more leave it a
# tenth of a core that both want, so that a computation which has begun does not have to end first.
_SHARE = 0.05
_LOWEST_NICER = 15


class FairThreads:
    """One for each kind of work in a process. A slot is held until its thread is done, even if the client has gone.

    There are two pools of as many threads. What callers ask beyond their share while others come goes to the second
    one, which the system runs only where the first leaves it time.
    """

    def __init__(
        self,
        name: str,
        threads: int,
        *,
        queue: int,
        overloaded: Callable[[], AppError],
        per_caller: int | None = None,
        lends_idle: bool = False,
        holds_interpreter: bool = False,
        gauge: Gauge | None = None,
    ) -> None:
        """At most `queue` computations wait, and of one caller at most `per_caller` wait or run; `overloaded` makes the
        error for further ones. `lends_idle` is that of `FairSlots`. `gauge` shows how many wait or run.

        `holds_interpreter`: the work is Python's own, so the event loop waits for the lock that it holds. Its threads
        are as important as the loop then, and their time is charged as the loop's.
        """
        self.size = threads + queue
        self._holds_interpreter = holds_interpreter
        first, second = (0, 0) if holds_interpreter else (_NICER, _LOWEST_NICER)
        self._first = _Threads(name, threads, first, lends_idle=lends_idle)
        self._second = _Threads(f"{name}-later", threads, second, lends_idle=lends_idle)
        self._shares = TimeShares(share=_SHARE, burst=0.0)
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
        request = caller_var.get()
        caller = None if request is None else request.key
        self._enter(caller)
        threads = self._threads_for(caller)
        try:
            if not threads.turns.try_acquire(caller):
                await self._wait_for_turn(threads.turns, caller)
        except BaseException:
            self._leave(caller)
            raise
        started = perf_counter()
        future = threads.pool.submit(work)
        loop = asyncio.get_running_loop()
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._end_turn, threads.turns, caller, started))
        try:
            return await asyncio.wrap_future(future)
        finally:
            if request is not None and self._holds_interpreter:
                request.used += perf_counter() - started

    async def close(self) -> None:
        """Waits for what runs."""
        for threads in (self._first, self._second):
            await asyncio.to_thread(threads.pool.shutdown, wait=True, cancel_futures=True)

    def _threads_for(self, caller: Hashable) -> "_Threads":
        now = perf_counter()
        if caller is None or self._holds_interpreter:
            return self._first
        self._shares.note(caller, now)
        is_beyond = self._shares.is_contended(now) and self._shares.delay(caller, now) > 0
        return self._second if is_beyond else self._first

    async def _wait_for_turn(self, turns: FairSlots, caller: Hashable) -> None:
        turn = turns.wait(caller)
        is_dropped = False

        def drop() -> None:
            nonlocal is_dropped
            is_dropped = turn.cancel()

        with when_client_goes(drop):
            try:
                await turn
            except asyncio.CancelledError:
                turns.withdraw(caller, turn)
                if is_dropped:
                    raise ClientGone from None
                raise

    def _end_turn(self, turns: FairSlots, caller: Hashable, started: float) -> None:
        turns.release(caller)
        self._leave(caller)
        if caller is not None and not self._holds_interpreter:
            now = perf_counter()
            self._shares.charge(caller, now - started, now)
            self._shares.forget(now)

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


class _Threads:
    """A pool of threads that are so much nicer than the event loop, and the turns at them."""

    def __init__(self, name: str, threads: int, nicer: int, *, lends_idle: bool) -> None:
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix=name, initializer=partial(_step_back, nicer))
        self.turns = FairSlots(threads, lends_idle=lends_idle)


def _step_back(nicer: int) -> None:
    """On a core that both want, the event loop gets three quarters and goes first; what it does takes microseconds."""
    if sys.platform == "linux":
        # Linux takes a thread for a process here; elsewhere this would slow the whole process down.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + nicer)
