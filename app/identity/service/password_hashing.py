"""Password hashes: argon2id in a bounded pool of threads, never on the event loop."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from argon2 import PasswordHasher, Type
from argon2.exceptions import InvalidHashError, VerificationError
from prometheus_client import Gauge, Histogram

from app.identity.errors import HashingOverloaded
from app.identity.settings import IdentitySettings
from app.kernel.fairness.threads import FairThreads, available_cores

T = TypeVar("T")

_hash_seconds = Histogram("onehop_identity_password_hash_seconds", "Time of a password hash in its thread, in seconds.")
_hash_waiting = Gauge(
    "onehop_identity_password_hashes", "Password hashes waiting or running.", multiprocess_mode="livesum"
)


class PasswordHashing:
    """One per process. Users and networks take turns at the threads, so that the log-ins of one do not let those of
    others wait.
    """

    def __init__(self, settings: IdentitySettings) -> None:
        self._hasher = PasswordHasher(
            time_cost=settings.hash_iterations,
            memory_cost=settings.hash_memory_kib,
            parallelism=1,
            type=Type.ID,
        )
        self._threads = FairThreads(
            "password-hash",
            settings.hash_threads or available_cores(),
            queue=settings.hash_queue,
            overloaded=HashingOverloaded,
            lends_idle=True,
            gauge=_hash_waiting,
        )
        # Hashes that may run or wait at one time.
        self.slots = self._threads.size
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

    async def close(self) -> None:
        await self._threads.close()

    def _matches(self, stored: str, password: str) -> bool:
        try:
            return self._hasher.verify(stored, password)
        except (VerificationError, InvalidHashError):
            return False

    async def _run(self, work: Callable[[], T]) -> T:
        self.count += 1
        return await self._threads.run(partial(self._timed, work))

    def _timed(self, work: Callable[[], T]) -> T:
        with _hash_seconds.time():
            return work()
