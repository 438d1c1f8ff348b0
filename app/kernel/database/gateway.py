"""The gateway: one pool, lent in units of work, with a bound on every wait."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import asyncpg
from prometheus_client import Counter, Gauge, Histogram

from app.kernel.background import Background
from app.kernel.database.failures import DatabaseUnavailable, PoolExhausted, is_lost_session, translate
from app.kernel.database.units import CopyConn, DirectConn, ReadConn, Row, Tx
from app.kernel.settings import DatabaseSettings
from app.kernel.telemetry import DURATION_BUCKETS, get_logger

_logger = get_logger(__name__)
_statements_total = Counter("app_database_statements", "SQL statements, by unit of work.", ["unit"])
_unit_seconds = Histogram(
    "app_database_unit_seconds", "Time a unit of work held its connection.", ["unit"], buckets=DURATION_BUCKETS
)
_acquire_seconds = Histogram(
    "app_database_acquire_seconds", "Time waited for a connection of the pool.", buckets=DURATION_BUCKETS
)
_pool_connections = Gauge(
    "app_database_pool_connections", "Connections of the pool.", ["state"], multiprocess_mode="livesum"
)


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement as sent, for tests and diagnosis."""

    label: str
    sql: str


class Database:
    """The gateway. One per process."""

    def __init__(self, settings: DatabaseSettings, *, application_name: str = "onehop") -> None:
        if settings.url is None:
            message = "the database URL is not set"
            raise ValueError(message)
        self._settings = settings
        self._dsn = settings.url.get_secret_value()
        self._application_name = application_name
        self._pool: asyncpg.Pool[Row] | None = None
        self._export_pool: asyncpg.Pool[Row] | None = None
        self._handlers: dict[str, Callable[[list[Any]], Awaitable[None]]] = {}
        self._recordings: list[list[Statement]] = []
        self._background = Background()
        self._seen_at = 0.0

    async def open(self) -> None:
        """Makes the pools. Postgres need not be there yet: connections are made when they are needed."""
        command_timeout = self._settings.statement_timeout + 0.5
        self._pool = await self._create_pool(self._settings.pool_size, command_timeout)
        self._export_pool = await self._create_pool(self._settings.export_pool_size, None)
        self._background.spawn(self._warm_up())

    async def close(self) -> None:
        """Waits for the units under way, at most five seconds, then closes all connections."""
        await self._background.close()
        for pool in (self._pool, self._export_pool):
            if pool is None:
                continue
            try:
                async with asyncio.timeout(5):
                    await pool.close()
            except (TimeoutError, asyncpg.InterfaceError):
                pool.terminate()

    def on_commit(self, topic: str, handler: Callable[[list[Any]], Awaitable[None]]) -> None:
        """Registers who takes the items emitted under `topic`."""
        self._handlers[topic] = handler

    @asynccontextmanager
    async def read(self, unit: str) -> AsyncIterator[ReadConn]:
        """A connection for reading. `unit` names the use case in metrics, as `users.profile`."""
        async with self._connection(unit) as connection:
            conn = ReadConn(self, connection, unit)
            try:
                yield conn
            finally:
                if conn.is_interrupted:
                    _terminate(connection)

    @asynccontextmanager
    async def statement(self, unit: str) -> AsyncIterator[Tx]:
        """A unit of exactly one statement, which Postgres makes atomic without BEGIN and COMMIT.

        Register what follows the commit before the statement: if its answer is lost, nobody knows whether it took
        place, and the work is done to be on the safe side.
        """
        tx: Tx | None = None
        try:
            async with self._connection(unit) as connection:
                tx = Tx(self, connection, unit, single=True)
                try:
                    yield tx
                finally:
                    if tx.is_interrupted:
                        _terminate(connection)
        except BaseException:
            self._settle_alone(tx)
            raise
        await self._settle(tx)

    @asynccontextmanager
    async def transaction(self, unit: str) -> AsyncIterator[Tx]:
        """A transaction: committed when the block ends, rolled back when it raises."""
        tx: Tx | None = None
        try:
            async with self._connection(unit) as connection:
                tx = Tx(self, connection, unit, single=False)
                try:
                    await tx.execute("BEGIN")
                    yield tx
                except BaseException:
                    await self._roll_back(tx, connection)
                    raise
                try:
                    await tx.commit()
                finally:
                    if tx.is_interrupted:
                        _terminate(connection)
        except BaseException:
            self._settle_alone(tx)
            raise
        await self._settle(tx)

    @asynccontextmanager
    async def snapshot(self, unit: str) -> AsyncIterator[CopyConn]:
        """One consistent view for a long read, on a connection apart from the pool of the requests."""
        async with self._connection(unit, self._export_pool) as connection:
            conn = CopyConn(self, connection, unit)
            try:
                await conn.fetch("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
                await conn.fetch("SET LOCAL statement_timeout = 0")
                yield conn
            finally:
                await self._roll_back(conn, connection)

    @asynccontextmanager
    async def connect(self, unit: str) -> AsyncIterator[DirectConn]:
        """A new connection for the length of the block."""
        try:
            connection = await asyncpg.connect(
                self._dsn,
                timeout=self._settings.connect_timeout,
                command_timeout=self._settings.statement_timeout + 0.5,
                server_settings={"application_name": f"{self._application_name}:{unit}"},
            )
        except (asyncpg.PostgresError, OSError, TimeoutError) as error:
            raise self.translate(error) from error
        try:
            yield DirectConn(self, connection, unit)
        finally:
            connection.terminate()

    @contextmanager
    def recorder(self) -> Iterator[list[Statement]]:
        """Collects every statement this process sends inside the block, BEGIN and COMMIT included."""
        recording: list[Statement] = []
        self._recordings.append(recording)
        try:
            yield recording
        finally:
            self._recordings.remove(recording)

    @property
    def seconds_since_answer(self) -> float:
        """How long ago Postgres last answered; infinite if it never did."""
        return perf_counter() - self._seen_at if self._seen_at else float("inf")

    def observe_pool(self) -> None:
        """Sets the pool's gauges."""
        if self._pool is not None:
            idle = self._pool.get_idle_size()
            _pool_connections.labels("idle").set(idle)
            _pool_connections.labels("used").set(self._pool.get_size() - idle)

    def note(self, unit: str, sql: str) -> None:
        """Counts a statement."""
        _statements_total.labels(unit).inc()
        for recording in self._recordings:
            recording.append(Statement(unit, sql))

    def translate(self, error: Exception) -> Exception:
        """The error of ours that a driver error means."""
        if is_lost_session(error):
            # The other connections most likely lead to the same place, so all of them are made anew.
            self._expire_pool()
        return translate(error)

    def _expire_pool(self) -> None:
        for pool in (self._pool, self._export_pool):
            if pool is not None:
                self._background.spawn(pool.expire_connections())

    @asynccontextmanager
    async def _connection(self, unit: str, pool: "asyncpg.Pool[Row] | None" = None) -> AsyncIterator[Any]:
        pool = pool or self._pool
        if pool is None:
            raise DatabaseUnavailable
        started = perf_counter()
        try:
            # The time-out also bounds asyncpg's release, which would otherwise wait for a frozen server for ever.
            connection = await pool.acquire(timeout=self._settings.acquire_timeout)
        except TimeoutError as error:
            raise (PoolExhausted() if pool.get_idle_size() == 0 else DatabaseUnavailable()) from error
        except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError) as error:
            raise self.translate(error) from error
        acquired = perf_counter()
        _acquire_seconds.observe(acquired - started)
        try:
            yield connection
            self._seen_at = perf_counter()
        finally:
            try:
                await pool.release(connection)
            except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError):
                _terminate(connection)
            _unit_seconds.labels(unit).observe(perf_counter() - acquired)

    async def _roll_back(self, conn: ReadConn, connection: Any) -> None:
        """Ends a transaction, or the connection if that cannot be done at once."""
        if conn.is_interrupted:
            _terminate(connection)
            return
        try:
            self.note("rollback", "ROLLBACK")
            await connection.execute("ROLLBACK", timeout=self._settings.acquire_timeout)
        except BaseException:  # noqa: BLE001 - whatever the reason, this connection must not be used again.
            _terminate(connection)

    async def _settle(self, tx: Tx) -> None:
        if tx.has_after_commit_work:
            # A caller that goes away now must not take the after-commit work with it.
            await asyncio.shield(self._background.spawn(tx.run_after_commit(self._handlers)))

    def _settle_alone(self, tx: Tx | None) -> None:
        """The same where the caller is no longer there to wait: it was cancelled, or cut off, after the commit."""
        if tx is not None and tx.has_after_commit_work and tx.may_have_committed:
            self._background.spawn(
                tx.run_after_commit(self._handlers) if tx.has_committed else self._settle_unknown(tx)
            )

    async def _settle_unknown(self, tx: Tx) -> None:
        """Nobody knows whether a cut-off commit took place; forgetting and ringing once too often does no harm."""
        await tx.run_after_commit(self._handlers)
        # The server may have been at work on it until now.
        await asyncio.sleep(self._settings.statement_timeout)
        await tx.run_after_commit(self._handlers)

    async def _warm_up(self) -> None:
        """Fills the pool, so that the first requests need not wait for connections."""
        pool = self._pool
        if pool is None:
            return
        connections: list[Any] = []
        try:
            for _ in range(self._settings.pool_size):
                connections.append(await pool.acquire(timeout=self._settings.connect_timeout))  # noqa: PERF401
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
            _logger.warning("postgres is not reachable yet", error=type(error).__name__)
        finally:
            # Shielded, so that a shutdown at this very moment leaves none of them behind.
            await asyncio.shield(asyncio.gather(*(pool.release(connection) for connection in connections)))

    async def _create_pool(self, size: int, command_timeout: float | None) -> "asyncpg.Pool[Row]":
        session = {"application_name": self._application_name, "TimeZone": "UTC"}
        if self._settings.session_settings:
            session |= {
                "statement_timeout": _milliseconds(self._settings.statement_timeout),
                "lock_timeout": _milliseconds(self._settings.lock_timeout),
                "idle_in_transaction_session_timeout": _milliseconds(self._settings.idle_in_transaction_timeout),
                "jit": "off",
            }
        return await asyncpg.create_pool(
            self._dsn,
            min_size=0,
            max_size=size,
            max_inactive_connection_lifetime=0,
            max_queries=1_000_000,
            timeout=self._settings.connect_timeout,
            command_timeout=command_timeout,
            statement_cache_size=512,
            max_cached_statement_lifetime=0,
            server_settings=session,
            reset=_no_reset,
        )


def _milliseconds(seconds: float) -> str:
    return str(round(seconds * 1000))


def _terminate(connection: Any) -> None:
    """Drops a connection. One that was lost meanwhile the pool has taken back already."""
    with suppress(asyncpg.InterfaceError):
        connection.terminate()


async def _no_reset(_: Any) -> None:
    """Nothing of ours outlives a transaction on a connection, so releasing one costs no statement."""
