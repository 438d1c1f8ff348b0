"""Read replicas: which of them has replayed enough, and which is there at all.

A commit that changes what replicas may show is known by the tags that it emits, and by its position in the WAL. A read
names the tags it depends on, and a replica serves it only if it has replayed all of their commits. A loop looks at each
replica four times a second; one that is dead, lags too far behind or has been promoted gets no reads meanwhile.

A position is text: eight hexadecimal digits of the timeline and sixteen of the LSN. Each failover begins a timeline at
some LSN, behind which that of before may have gone on: a replica that has followed it there never gets what was written
since, however large its LSN.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Any, Protocol

from prometheus_client import Counter, Gauge

from app.kernel.background import Background
from app.kernel.database.failures import OwnConnectionsBusy, PoolExhausted
from app.kernel.database.pools import CONNECT_ERRORS, Connector, Pool
from app.kernel.errors import Unavailable
from app.kernel.observability.telemetry import get_logger
from app.kernel.settings import DatabaseSettings

_logger = get_logger(__name__)
_reads_total = Counter("onehop_database_replica_reads", "Reads offered to replicas, by outcome.", ["outcome"])
_lag_seconds = Gauge(
    "onehop_database_replica_lag_seconds",
    "Replay lag of a replica in seconds.",
    ["replica"],
    multiprocess_mode="max",
)
_usable = Gauge(
    "onehop_database_replica_usable", "1 while a replica receives reads.", ["replica"], multiprocess_mode="min"
)

UNKNOWN_POSITION = "f" * 24
"""Behind every commit there will be: no replica has replayed it."""

_WATCH_SECONDS = 0.25
_ANSWER_SECONDS = 1.0
# Not long, because the primary has connections too.
_ACQUIRE_SECONDS = 0.25
_TIMELINE_DIGITS = 8
# The timeline is the one received last, which only a role with pg_read_all_stats sees, or that of the last restart
# point. It may be ahead of what is replayed, but not once an LSN is reached that lies behind its beginning.
GET_REPLAYED = """
SELECT pg_is_in_recovery(),
       lpad(to_hex(greatest(timeline_id, (SELECT received_tli FROM pg_stat_wal_receiver))), 8, '0')
       || lpad(to_hex((pg_last_wal_replay_lsn() - '0/0'::pg_lsn)::bigint), 16, '0')
  FROM pg_control_checkpoint()
"""
GET_FLUSHED = """
SELECT lower(left(pg_walfile_name(lsn), 8)) || lpad(to_hex((lsn - '0/0'::pg_lsn)::bigint), 16, '0')
  FROM pg_current_wal_flush_lsn() AS lsn
"""
# Of what is inserted, because a commit with synchronous_commit off is answered before it is flushed.
GET_INSERTED = """
SELECT lower(left(pg_walfile_name(lsn), 8)) || lpad(to_hex((lsn - '0/0'::pg_lsn)::bigint), 16, '0')
  FROM pg_current_wal_insert_lsn() AS lsn
"""


class WalPositionStore(Protocol):
    """Where all processes keep the WAL position up to which each tag's commits reach."""

    async def remember_position(self, emitted: Mapping[str, Sequence[Any]], position: str) -> None:
        """Keeps `position` for what a unit emitted."""
        ...

    async def close(self) -> None: ...

    async def latest(self, tags: Sequence[str], ask_now: Callable[[], Awaitable[str]]) -> str:
        """The position that covers all commits of `tags`.

        Where nothing is known of the past any more, `ask_now` tells one that covers everything.
        """
        ...


class Replica:
    """One replica, as this process sees it."""

    def __init__(self, name: str, connector: Connector, settings: DatabaseSettings) -> None:
        self.name = name
        self.replayed = ""
        self.is_usable = False
        self._connector = connector
        self._settings = settings
        self.pool: Pool | None = None
        self.export_pool: Pool | None = None
        self._watching: Any = None

    async def acquire(self, pool: Pool, caller: Hashable) -> Any:
        """A connection of one of its pools, or None.

        Raises:
            OwnConnectionsBusy: which says nothing of the replica.
        """
        try:
            connection = await pool.acquire(_ACQUIRE_SECONDS, caller)
        except OwnConnectionsBusy:
            raise
        except (*CONNECT_ERRORS, PoolExhausted) as error:
            self.record_failure(error)
            return None
        _reads_total.labels("replica").inc()
        return connection

    def record_failure(self, error: Exception) -> None:
        """No reads until it has been looked at again."""
        _reads_total.labels("failed").inc()
        self._set_usable(usable=False, reason=type(error).__name__)

    async def look(self, freshness: Callable[[str], float | None]) -> None:
        """Asks how far it is. `freshness` says how many seconds old the state at a position is, if that is known."""
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                if self._watching is None:
                    self._watching = await self._connector.connect("replica")
                is_replica, replayed = await self._watching.fetchrow(GET_REPLAYED)
        except CONNECT_ERRORS as error:
            self._lose(error)
            return
        self.replayed = replayed or ""
        lag = freshness(self.replayed)
        _lag_seconds.labels(self.name).set(lag if lag is not None else self._settings.replica_max_lag)
        if self.pool is None or self.export_pool is None:
            command_timeout = self._settings.statement_timeout + 0.5
            self.pool = await self._connector.pool(self._settings.pool_size, command_timeout=command_timeout)
            self.export_pool = await self._connector.pool(
                self._settings.export_pool_size, command_timeout=self._settings.export_timeout
            )
        if not is_replica:
            self._set_usable(usable=False, reason="it has been promoted")
        elif lag is None or lag > self._settings.replica_max_lag:
            self._set_usable(usable=False, reason="it lags behind, or follows a former primary")
        else:
            self._set_usable(usable=True)

    async def close(self) -> None:
        if self._watching is not None:
            self._watching.terminate()
        for pool in (self.pool, self.export_pool):
            if pool is not None:
                await pool.close()

    def _lose(self, error: Exception) -> None:
        """Ends everything that waits for it, so that it is done elsewhere at once."""
        self._set_usable(usable=False, reason=type(error).__name__)
        if self._watching is not None:
            self._watching.terminate()
            self._watching = None
        for pool in (self.pool, self.export_pool):
            if pool is not None:
                pool.terminate()
        self.pool = self.export_pool = None

    def _set_usable(self, *, usable: bool, reason: str = "") -> None:
        if usable != self.is_usable:
            event = "replica gets reads" if usable else "replica gets no reads"
            _logger.warning(event, replica=self.name, reason=reason)
        self.is_usable = usable
        _usable.labels(self.name).set(usable)


class Replicas:
    """All replicas of one primary."""

    def __init__(self, settings: DatabaseSettings, application_name: str, ask_primary: "AskPrimary") -> None:
        self._replicas = [
            Replica(str(number), Connector(url.get_secret_value(), settings, application_name), settings)
            for number, url in enumerate(settings.replica_urls)
        ]
        self._ask_primary = ask_primary
        self._background = Background()
        # When this process asked the primary, and how far its WAL reached then, over the longest lag allowed.
        self._samples: deque[tuple[float, str]] = deque(maxlen=int(settings.replica_max_lag / _WATCH_SECONDS) + 2)
        self._next = 0
        self.positions: WalPositionStore | None = None

    def open(self) -> None:
        for look in (self._sample, *(replica.look for replica in self._replicas)):
            self._background.repeat(partial(look, self._freshness), name="database.replicas", every=_WATCH_SECONDS)

    async def close(self) -> None:
        await self._background.close()
        if self.positions is not None:
            await self.positions.close()
        for replica in self._replicas:
            await replica.close()

    async def choose(self, tags: Sequence[str]) -> Replica | None:
        """A replica that shows all commits of `tags`; None if that is none."""
        usable = [replica for replica in self._replicas if replica.is_usable]
        if self.positions is None or not usable:
            return None
        position = await self.positions.latest(tags, self._now)
        fitting = [replica for replica in usable if _reaches(replica.replayed, position)]
        if not fitting:
            _reads_total.labels("behind").inc()
            return None
        self._next += 1
        return fitting[self._next % len(fitting)]

    async def remember_commit(self, emitted: Mapping[str, Sequence[Any]]) -> None:
        """To be awaited between a commit and what tells others of it."""
        if self.positions is None:
            return
        await self.positions.remember_position(emitted, await self._now())

    async def _now(self) -> str:
        """A position behind all that has been committed so far."""
        try:
            return await self._ask_primary(GET_INSERTED)
        except Unavailable:
            return UNKNOWN_POSITION

    def _freshness(self, replayed: str) -> float | None:
        """Seconds between the newest sample and the newest one that a replica at `replayed` has reached."""
        # On the timeline of a former primary it shows what may have been lost with it.
        if not self._samples or replayed[:_TIMELINE_DIGITS] < self._samples[-1][1][:_TIMELINE_DIGITS]:
            return None
        reached = next((time for time, position in reversed(self._samples) if _reaches(replayed, position)), None)
        return None if reached is None else self._samples[-1][0] - reached

    async def _sample(self, _: object) -> None:
        # Timed before, so that what is committed while it runs does not count as older than the answer.
        asked_at = monotonic()
        with suppress(Unavailable):
            self._samples.append((asked_at, await self._ask_primary(GET_FLUSHED)))


def _reaches(replayed: str, position: str) -> bool:
    timeline, lsn = position[:_TIMELINE_DIGITS], position[_TIMELINE_DIGITS:]
    return replayed[:_TIMELINE_DIGITS] >= timeline and replayed[_TIMELINE_DIGITS:] >= lsn


AskPrimary = Callable[[str], Awaitable[str]]
Look = Callable[[Callable[[str], float | None]], Awaitable[None]]
