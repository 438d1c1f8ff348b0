"""A connection of a pool leased to one unit of work."""

from contextlib import suppress
from time import perf_counter
from typing import Any, Protocol

import asyncpg
from prometheus_client import Histogram

from app.kernel.database.failures import DatabaseUnavailable, is_broken
from app.kernel.database.pools import CONNECT_ERRORS, Pool
from app.kernel.database.replicas import Replica
from app.kernel.fairness.callers import caller_var
from app.kernel.observability.telemetry import DURATION_BUCKETS, get_logger

_logger = get_logger(__name__)
# What a second of a connection counts of the event loop's time: a caller that uses nothing else has one of them.
_PART_OF_LOOP = 0.2
_unit_seconds = Histogram(
    "onehop_database_unit_seconds",
    "Time that a unit of work held its connection, in seconds.",
    ["unit"],
    buckets=DURATION_BUCKETS,
)
_acquire_seconds = Histogram(
    "onehop_database_acquire_seconds", "Time waited for a connection of the pool, in seconds.", buckets=DURATION_BUCKETS
)
# What a replica says, or does not say, for reasons of its own. (40001 is also how it ends a statement that keeps it
# from replaying.)
_REPLICA_ERRORS = (
    asyncpg.SerializationError,
    asyncpg.DeadlockDetectedError,
    OSError,
    TimeoutError,
)


class LeaseOwner(Protocol):
    """The gateway, as far as a lease needs it."""

    def translate(self, error: Exception) -> Exception: ...


class ConnectionLease:
    """A connection, replaced by another one where the first turns out to be dead."""

    __slots__ = (
        "_acquired_at",
        "_caller",
        "_owner",
        "_pool",
        "_replica",
        "_replica_pool",
        "_request",
        "_source",
        "_timeout",
        "_unit",
        "_writes",
        "connection",
    )

    def __init__(self, owner: LeaseOwner, pool: Pool, unit: str, timeout: float, *, writes: bool) -> None:
        self._owner = owner
        self._pool = pool
        self._unit = unit
        self._timeout = timeout
        self._writes = writes
        self._request = caller_var.get()
        self._caller = None if self._request is None else self._request.key
        self._replica: Replica | None = None
        self._replica_pool: Pool | None = None
        self._source = pool
        self._acquired_at = 0.0
        self.connection: Any = None

    def prefer(self, replica: Replica, pool: Pool | None) -> None:
        """Tries `pool`, which is one of `replica`'s, first."""
        self._replica, self._replica_pool = replica, pool

    async def begin(self) -> None:
        """Waits for a connection, of the primary if the replica has none.

        Raises:
            PoolExhausted, DatabaseUnavailable
        """
        started = perf_counter()
        if self._replica is not None and (pool := self._replica_pool) is not None:
            self.connection, self._source = await self._replica.acquire(pool, self._caller), pool
        if self.connection is None:
            self._replica, self._source = None, self._pool
            self.connection = await self._acquire()
        self._acquired_at = perf_counter()
        _acquire_seconds.observe(self._acquired_at - started)

    async def _acquire(self, *, may_fail: bool = True) -> Any:
        try:
            return await self._pool.acquire(self._timeout, self._caller, writes=self._writes)
        except TimeoutError as error:
            raise DatabaseUnavailable from error
        except CONNECT_ERRORS as error:
            # One that was cut off while it was made says nothing of the next one.
            if not (may_fail and is_broken(error)):
                raise self._owner.translate(error) from error
        return await self._acquire(may_fail=False)

    async def end(self) -> None:
        """Gives the connection back."""
        if self.connection is None:
            return
        connection, self.connection = self.connection, None
        try:
            await self._source.release(connection, self._caller, writes=self._writes)
        except CONNECT_ERRORS:
            _terminate(connection)
        seconds = perf_counter() - self._acquired_at
        if self._request is not None:
            self._request.used += seconds * _PART_OF_LOOP
        _unit_seconds.labels(self._unit).observe(seconds)

    def discard(self) -> None:
        """Drops the connection, because its next answer could belong to an earlier statement."""
        if self.connection is not None:
            _terminate(self.connection)

    async def renew(self, error: Exception) -> Any:
        """Another connection, to the primary, if `error` says that the present one is of no use; else None.

        Only for what can be sent a second time: it may have been carried out, and only its answer lost.
        """
        if self._replica is not None:
            if not (is_broken(error) or isinstance(error, _REPLICA_ERRORS)):
                return None
            self._replica.record_failure(error)
        elif not is_broken(error):
            return None
        else:
            self._owner.translate(error)
        return await self._reconnect()

    async def renew_if_refused(self, error: Exception) -> Any:
        """The same for a write, if it certainly was not carried out: on a primary that has become a replica."""
        if not isinstance(error, asyncpg.ReadOnlySQLTransactionError):
            return None
        self._owner.translate(error)
        return await self._reconnect()

    async def _reconnect(self) -> Any:
        self.discard()
        await self.end()
        self._replica = None
        await self.begin()
        return self.connection


def _terminate(connection: Any) -> None:
    # One that was lost meanwhile the pool has taken back already.
    with suppress(asyncpg.InterfaceError):
        connection.terminate()
