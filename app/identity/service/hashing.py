"""Password hashes: argon2id in a bounded pool of threads, never on the event loop."""

import asyncio
import os
import sys
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from argon2 import PasswordHasher, Type
from argon2.exceptions import InvalidHashError, VerificationError
from prometheus_client import Gauge, Histogram

from app.identity.errors import HashingOverloaded
from app.identity.settings import IdentitySettings
from app.kernel.callers import caller_key
from app.kernel.disconnects import ClientGone, when_client_goes
from app.kernel.fair_slots import FairSlots

T = TypeVar("T")

# At 19 a busy neighbour would be enough to keep people from logging in.
_NICER = 5

_hash_seconds = Histogram("app_identity_password_hash_seconds", "Time in a hashing thread, without the wait for it.")
_hash_waiting = Gauge("app_identity_password_hashes", "Hashes waiting or running.", multiprocess_mode="livesum")


class PasswordHashing:
    """One per process. A place is held until the thread is done, even if the request has gone away meanwhile."""

    def __init__(self, settings: IdentitySettings) -> None:
        self._hasher = PasswordHasher(
            time_cost=settings.hash_iterations,
            memory_cost=settings.hash_memory_kib,
            parallelism=1,
            type=Type.ID,
        )
        threads = settings.hash_threads or _cores()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="password-hash", initializer=_step_back)
        # Users and networks take turns at the threads, so that the log-ins of one do not let those of others wait.
        self._turns = FairSlots(threads, lends_idle=True)
        # Hashes that may run or wait at one time.
        self.places = threads + settings.hash_queue
        self._used = 0
        # What a log-in for an unknown address is compared with, so that it takes as long as any other.
        self._dummy = self._hasher.hash("no password has this hash")
        self.count = 0

    async def hash(self, password: str) -> str:
        """The PHC string of `password`.

        Raises:
            HashingOverloaded: too many hashes are waiting. ClientGone: the client went away before it began.
        """
        return await self._run(partial(self._hasher.hash, password))

    async def verify(self, stored: str | None, password: str) -> bool:
        """Whether `password` is the one of `stored`; takes the same time when there is no stored hash.

        Raises:
            HashingOverloaded: too many hashes are waiting. ClientGone: the client went away before it began.
        """
        matches = await self._run(partial(self._matches, stored or self._dummy, password))
        return matches and stored is not None

    def is_outdated(self, stored: str) -> bool:
        """Whether `stored` was made with other parameters than those of today."""
        return self._hasher.check_needs_rehash(stored)

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _matches(self, stored: str, password: str) -> bool:
        try:
            return self._hasher.verify(stored, password)
        except (VerificationError, InvalidHashError):
            return False

    async def _run(self, work: Callable[[], T]) -> T:
        if self._used >= self.places:
            raise HashingOverloaded
        self._used += 1
        self.count += 1
        _hash_waiting.inc()
        caller = caller_key()
        try:
            if not self._turns.try_acquire(caller):
                await self._wait_for_turn(caller)
        except BaseException:
            self._leave()
            raise
        future = self._pool.submit(self._timed, work)
        loop = asyncio.get_running_loop()
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._end_turn, caller))
        return await asyncio.wrap_future(future)

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

    def _timed(self, work: Callable[[], T]) -> T:
        with _hash_seconds.time():
            return work()

    def _end_turn(self, caller: Hashable) -> None:
        self._turns.release(caller)
        self._leave()

    def _leave(self) -> None:
        self._used -= 1
        _hash_waiting.dec()


def _cores() -> int:
    """Those that this process may use, which is what a container or taskset leaves it."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _step_back() -> None:
    """On a core that both want, the event loop gets three quarters and goes first; what it does takes microseconds."""
    if sys.platform == "linux":
        # Linux takes a thread for a process here; elsewhere this would slow the whole process down.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + _NICER)
