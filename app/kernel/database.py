"""The only way to Postgres: one gateway over one asyncpg pool, with a bound on every wait.

A service opens a unit of work and the gateway decides what it costs and how it fails:

    async with db.read("users.profile") as conn: ...          # statements on one connection, no transaction
    async with db.statement("users.rename") as tx: ...        # exactly one statement: atomic by itself, one round trip
    async with db.transaction("identity.register") as tx: ... # BEGIN … COMMIT
    async with db.snapshot("jobs.export") as conn: ...        # one REPEATABLE READ view, for long exports

No driver exception leaves this file. No session state is left on a connection, so that PgBouncer may stand in between
and so that a released connection needs no reset statement.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import wraps
from time import perf_counter
from typing import Any, Literal, ParamSpec, TypeVar

import asyncpg
from prometheus_client import Counter, Gauge, Histogram

from app.kernel.background import Background
from app.kernel.errors import Unavailable, Unprocessable
from app.kernel.settings import DatabaseSettings
from app.kernel.telemetry import DURATION_BUCKETS, get_logger

P = ParamSpec("P")
R = TypeVar("R")
Row = asyncpg.Record
ConstraintKind = Literal["unique", "foreign_key", "check", "not_null", "exclusion"]

MAX_CONFLICT_RETRIES = 2

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


class DatabaseUnavailable(Unavailable):
    code = "database_unavailable"
    title = "The database cannot answer at the moment"


class PoolExhausted(Unavailable):
    code = "pool_exhausted"
    title = "All database connections are busy"


class TransactionConflict(Unavailable):
    """Concurrent transactions collided (SQLSTATE 40001, 40P01, or a plan invalidated by DDL); a retry may succeed."""

    code = "transaction_conflict"
    title = "Concurrent changes collided"


class InvalidValue(Unprocessable):
    """Postgres refused a value that the edge let through."""

    code = "invalid_value"
    title = "A value is outside what can be stored"


class ConstraintViolated(Exception):
    """A statement broke a constraint. `queries.py` turns the constraint's name into the module's own error."""

    def __init__(self, constraint: str, kind: ConstraintKind) -> None:
        super().__init__(f"{kind}: {constraint}")
        self.constraint = constraint
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement as sent, for tests and diagnosis."""

    label: str
    sql: str


class ReadConn:
    """Reads on one connection. Statements see the newest committed rows, each for itself."""

    __slots__ = ("_connection", "_database", "_interrupted", "_unit")

    def __init__(self, database: "Database", connection: Any, unit: str) -> None:
        self._database = database
        self._connection = connection
        self._unit = unit
        # Set while a statement is under way, and left set when it was cut off: such a connection is never used again.
        self._interrupted = False

    async def fetch(self, sql: str, *args: Any) -> list[Row]:
        """All rows."""
        result: list[Row] = await self._run(self._connection.fetch, sql, args)
        return result

    async def fetchrow(self, sql: str, *args: Any) -> Row | None:
        """The first row, or None."""
        result: Row | None = await self._run(self._connection.fetchrow, sql, args)
        return result

    async def fetchval(self, sql: str, *args: Any) -> Any:
        """The first column of the first row, or None."""
        return await self._run(self._connection.fetchval, sql, args)

    async def _run(self, call: Callable[..., Awaitable[Any]], sql: str, args: tuple[Any, ...]) -> Any:
        self._database.note(self._unit, sql)
        self._interrupted = True
        try:
            result = await call(sql, *args)
        except asyncpg.PostgresError as error:
            # The server answered, so the protocol is in step again.
            self._interrupted = isinstance(error, asyncpg.PostgresConnectionError)
            raise self._database.translate(error) from error
        except (asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError) as error:
            self._interrupted = not isinstance(error, asyncpg.DataError)
            raise self._database.translate(error) from error
        self._interrupted = False
        return result

    @property
    def is_interrupted(self) -> bool:
        """Whether a statement was cut off, which leaves the connection in an unknown state."""
        return self._interrupted


class Tx(ReadConn):
    """A unit of work that may write. What has to follow a commit is registered here and nowhere else."""

    __slots__ = ("_after_commit", "_commits", "_emitted", "_has_committed", "_statements_left")

    def __init__(self, database: "Database", connection: Any, unit: str, *, single: bool) -> None:
        super().__init__(database, connection, unit)
        self._after_commit: list[Callable[[], Awaitable[None]]] = []
        self._emitted: dict[str, list[Any]] = {}
        self._statements_left = 1 if single else -1
        # Whether the statement sent next, or last, makes the unit's changes permanent.
        self._commits = single
        self._has_committed = False

    async def execute(self, sql: str, *args: Any) -> str:
        """Runs a statement; the answer is its command tag, such as `UPDATE 3`."""
        result: str = await self._run(self._connection.execute, sql, args)
        return result

    def after_commit(self, callback: Callable[[], Awaitable[None]]) -> None:
        """`callback` runs once this unit has committed, before the caller goes on; never after a rollback."""
        self._after_commit.append(callback)

    def emit(self, topic: str, item: Any) -> None:
        """Hands `item` to the handler of `topic` after the commit, together with all others of this unit."""
        self._emitted.setdefault(topic, []).append(item)

    async def _run(self, call: Callable[..., Awaitable[Any]], sql: str, args: tuple[Any, ...]) -> Any:
        if self._statements_left == 0:
            message = f"{self._unit}: a single-statement unit cannot run a second statement"
            raise RuntimeError(message)
        self._statements_left -= 1
        result = await super()._run(call, sql, args)
        self._has_committed = self._commits
        return result

    async def commit(self) -> None:
        """Ends a transaction.

        Raises:
            RuntimeError: a statement of it had failed and the failure was swallowed, so that nothing was stored.
        """
        self._commits = True
        if await self.execute("COMMIT") != "COMMIT":
            self._has_committed = False
            message = f"{self._unit}: a transaction with a failed statement cannot be committed"
            raise RuntimeError(message)

    @property
    def has_committed(self) -> bool:
        return self._has_committed

    @property
    def may_have_committed(self) -> bool:
        """Also true where the answer to the last statement never came."""
        return self._has_committed or (self._commits and self._interrupted)

    @property
    def has_after_commit_work(self) -> bool:
        return bool(self._after_commit or self._emitted)

    async def run_after_commit(self, handlers: "dict[str, Callable[[list[Any]], Awaitable[None]]]") -> None:
        """Runs what was registered. One failure is logged and does not keep the others from running."""
        work: list[tuple[str, Callable[[], Awaitable[None]]]] = [
            (topic, lambda topic=topic, items=items: handlers[topic](items))  # type: ignore[misc]  # mypy cannot type defaults
            for topic, items in self._emitted.items()
        ]
        work.extend((getattr(callback, "__qualname__", "callback"), callback) for callback in self._after_commit)
        for name, callback in work:
            try:
                await callback()
            except Exception:
                _logger.exception("after-commit work failed", unit=self._unit, work=name)


class CopyConn(ReadConn):
    """One unchanging view of the database for a long read."""

    __slots__ = ()

    async def cursor(self, sql: str, *args: Any, prefetch: int = 5_000) -> AsyncIterator[Row]:
        """Rows one by one, `prefetch` of them in memory at a time."""
        self._database.note(self._unit, sql)
        try:
            async for row in self._connection.cursor(sql, *args, prefetch=prefetch):
                yield row
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
            self._interrupted = True
            raise self._database.translate(error) from error

    async def copy_to(self, sql: str, *args: Any, output: Callable[[bytes], Awaitable[None]], **options: Any) -> int:
        """Streams `COPY (sql) TO` into `output`; the answer is the number of rows. `options` are asyncpg's."""

        async def copy(sql: str, *args: Any) -> str:
            tag: str = await self._connection.copy_from_query(sql, *args, output=output, **options)
            return tag

        tag: str = await self._run(copy, sql, args)
        return int(tag.removeprefix("COPY "))


class DirectConn(ReadConn):
    """A connection of its own, outside the pool, for what a pooler cannot carry: session locks and LISTEN."""

    __slots__ = ()

    async def execute(self, sql: str, *args: Any) -> str:
        """Runs a statement; the answer is its command tag."""
        result: str = await self._run(self._connection.execute, sql, args)
        return result


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

    def translate(self, error: Exception) -> Exception:  # noqa: PLR0911 - a table, read from top to bottom
        """The error of ours that a driver error means (the map of `docs/operations.md`)."""
        if isinstance(error, asyncpg.IntegrityConstraintViolationError):
            return ConstraintViolated(error.constraint_name or error.column_name or "", _constraint_kind(error))
        if isinstance(error, asyncpg.DataError):
            return InvalidValue()
        if isinstance(
            error,
            asyncpg.SerializationError | asyncpg.DeadlockDetectedError | asyncpg.InvalidCachedStatementError,
        ):
            return TransactionConflict()
        if isinstance(error, asyncpg.LockNotAvailableError | asyncpg.QueryCanceledError):
            return DatabaseUnavailable("The statement took too long.")
        if isinstance(error, _LOST_SESSION_ERRORS):
            # The other connections most likely lead to the same place, so all of them are made anew.
            self._expire_pool()
            return DatabaseUnavailable()
        if isinstance(error, asyncpg.InsufficientResourcesError):
            _logger.error("postgres is out of resources", error=type(error).__name__)
            return DatabaseUnavailable()
        if isinstance(error, asyncpg.InterfaceError | asyncpg.InternalClientError | OSError | TimeoutError):
            return DatabaseUnavailable()
        return error

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


def retries_conflicts(
    function: Callable[P, Coroutine[Any, Any, R]],
) -> Callable[P, Coroutine[Any, Any, R]]:
    """Runs a service function again, at most twice, when its transaction collided with another one.

    For functions with exactly one transaction: what they do before it must be harmless to repeat.
    """

    @wraps(function)
    async def run(*args: P.args, **kwargs: P.kwargs) -> R:
        for _ in range(MAX_CONFLICT_RETRIES):
            try:
                return await function(*args, **kwargs)
            except TransactionConflict:
                await asyncio.sleep(random.uniform(0.005, 0.05))  # noqa: S311 - jitter, not a secret
        return await function(*args, **kwargs)

    return run


_LOST_SESSION_ERRORS = (
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.PostgresConnectionError,
)
_CONSTRAINT_KINDS: tuple[tuple[type[asyncpg.PostgresError], ConstraintKind], ...] = (
    (asyncpg.UniqueViolationError, "unique"),
    (asyncpg.ForeignKeyViolationError, "foreign_key"),
    (asyncpg.CheckViolationError, "check"),
    (asyncpg.NotNullViolationError, "not_null"),
    (asyncpg.ExclusionViolationError, "exclusion"),
)


def _constraint_kind(error: asyncpg.PostgresError) -> ConstraintKind:
    return next((kind for known, kind in _CONSTRAINT_KINDS if isinstance(error, known)), "check")


def _milliseconds(seconds: float) -> str:
    return str(round(seconds * 1000))


def _terminate(connection: Any) -> None:
    """Drops a connection. One that was lost meanwhile the pool has taken back already."""
    with suppress(asyncpg.InterfaceError):
        connection.terminate()


async def _no_reset(_: Any) -> None:
    """Nothing of ours outlives a transaction on a connection, so releasing one costs no statement."""
