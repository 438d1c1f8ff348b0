"""The gateway: one pool, leased in units of work, with a bound on every wait."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from prometheus_client import Counter, Gauge

from app.kernel.background import Background
from app.kernel.database.connection_lease import ConnectionLease
from app.kernel.database.failures import DatabaseUnavailable, PoolExhausted, is_broken, translate
from app.kernel.database.pools import CONNECT_ERRORS, Connector, Pool
from app.kernel.database.replicas import Replicas, WalPositionStore
from app.kernel.database.sync_standby import SyncStandbyMonitor
from app.kernel.database.units import CopyConn, DirectConn, ReadConn, Tx
from app.kernel.observability.telemetry import get_logger
from app.kernel.settings import DatabaseSettings

_logger = get_logger(__name__)
_statements_total = Counter("onehop_database_statements", "SQL statements, by unit of work.", ["unit"])
_pool_connections = Gauge(
    "onehop_database_pool_connections", "Connections of the pool.", ["state"], multiprocess_mode="livesum"
)
_EXPIRY_SECONDS = 0.1
# As SET LOCAL. Between two pieces the consumer needs the time: a slow file store, for instance.
_SNAPSHOT_TIMEOUTS = """
SELECT set_config(name, wanted.value, true)
  FROM (VALUES ('statement_timeout', '0'), ('idle_in_transaction_session_timeout', '15min'),
               ('transaction_timeout', '0')) AS wanted (name, value)
  JOIN pg_catalog.pg_settings USING (name)
"""


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement as sent, for tests and diagnosis."""

    label: str
    sql: str


class Database:
    """The gateway. One per process."""

    def __init__(self, settings: DatabaseSettings, *, application_name: str = "onehop") -> None:
        self._settings = settings
        self._connector = Connector(settings.dsn, settings, application_name)
        self._direct_connector = Connector(settings.direct_dsn, settings, application_name)
        self._replicas = Replicas(settings, application_name, self._ask) if settings.replica_urls else None
        self._pool: Pool | None = None
        self._export_pool: Pool | None = None
        self._handlers: dict[str, Callable[[list[Any]], Awaitable[None]]] = {}
        self._recordings: list[list[Statement]] = []
        self._background = Background()
        self._sync_standby = SyncStandbyMonitor(self._ask)
        self._expired_at = 0.0

    async def open(self) -> None:
        """Makes the pools. Postgres need not be there yet: connections are made when they are needed."""
        command_timeout = self._settings.statement_timeout + 0.5
        self._pool = await self._connector.pool(self._settings.pool_size, command_timeout=command_timeout)
        self._export_pool = await self._connector.pool(
            self._settings.export_pool_size, command_timeout=self._settings.export_timeout
        )
        self._background.spawn(self._warm_up())
        if self._replicas is not None:
            self._replicas.open()

    async def close(self) -> None:
        """Waits for the units under way, at most five seconds, then closes all connections."""
        await self._sync_standby.close()
        await self._background.close()
        if self._replicas is not None:
            await self._replicas.close()
        for pool in (self._pool, self._export_pool):
            if pool is not None:
                await pool.close()

    def on_commit(self, topic: str, handler: Callable[[list[Any]], Awaitable[None]]) -> None:
        """Registers the consumer of the items emitted under `topic`."""
        self._handlers[topic] = handler

    def bind_positions(self, positions: WalPositionStore) -> None:
        """Without it no replica is ever used, because it is unknown what it has to have replayed."""
        if self._replicas is not None:
            self._replicas.positions = positions

    @asynccontextmanager
    async def read(self, unit: str, *, sees: Sequence[str] = ()) -> AsyncIterator[ReadConn]:
        """A connection for reading. `unit` names the use case in metrics, as `users.profile`.

        A statement whose connection is lost is sent once more, on another one. `sees` lets a replica answer if it has
        replayed every commit that emitted one of these tags; without it the primary does.
        """
        async with self._lease(unit, sees=sees) as lease:
            conn = ReadConn(self, lease.connection, unit, lease.renew)
            try:
                yield conn
            finally:
                if conn.is_interrupted:
                    lease.discard()

    @asynccontextmanager
    async def statement(self, unit: str) -> AsyncIterator[Tx]:
        """A unit of exactly one statement, which Postgres makes atomic without BEGIN and COMMIT.

        Register what follows the commit before the statement: if its answer is lost, it is unknown whether it took
        place, and the work is done to be on the safe side.
        """
        tx: Tx | None = None
        self._sync_standby.check()
        try:
            async with self._lease(unit, writes=True) as lease:
                tx = Tx(self, lease.connection, unit, lease.renew_if_refused, single=True)
                try:
                    yield tx
                finally:
                    if tx.is_interrupted:
                        lease.discard()
        except BaseException as error:
            self._run_after_commit_detached(tx, error)
            raise
        await self._run_after_commit_shielded(tx)

    @asynccontextmanager
    async def transaction(self, unit: str) -> AsyncIterator[Tx]:
        """A transaction: committed when the block ends, rolled back when it raises."""
        tx: Tx | None = None
        self._sync_standby.check()
        try:
            async with self._lease(unit, writes=True) as lease:
                tx = Tx(self, lease.connection, unit, lease.renew, single=False)
                try:
                    await tx.execute("BEGIN")
                    tx.stay()
                    yield tx
                except BaseException:
                    await self._roll_back(tx, lease)
                    raise
                try:
                    await tx.commit()
                finally:
                    if tx.is_interrupted:
                        lease.discard()
        except BaseException as error:
            self._run_after_commit_detached(tx, error)
            raise
        await self._run_after_commit_shielded(tx)

    @asynccontextmanager
    async def snapshot(self, unit: str, *, sees: Sequence[str] = ()) -> AsyncIterator[CopyConn]:
        """One consistent view for a long read, on a connection apart from the pool of the requests.

        It may take as long as it goes on: what is bounded, by `export_timeout`, is the time until the next piece comes.
        `sees` is that of `read`; but a replica may end what keeps it from replaying (`TransactionConflict`).
        """
        async with self._lease(unit, is_export=True, sees=sees) as lease:
            conn = CopyConn(self, lease.connection, unit, lease.renew, copy_timeout=self._settings.export_timeout)
            try:
                await conn.fetch("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
                conn.stay()
                await conn.fetch(_SNAPSHOT_TIMEOUTS)
                yield conn
            finally:
                await self._roll_back(conn, lease)

    @asynccontextmanager
    async def connect(self, unit: str) -> AsyncIterator[DirectConn]:
        """A new connection to Postgres itself, past any pooler, for the length of the block."""
        try:
            connection = await self._direct_connector.connect(unit)
        except CONNECT_ERRORS as error:
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

    def observe_pool(self) -> None:
        """Sets the pool's gauges."""
        if self._pool is not None:
            size, idle = self._pool.connections
            _pool_connections.labels("idle").set(idle)
            _pool_connections.labels("used").set(size - idle)

    def count_statement(self, unit: str, sql: str) -> None:
        """Counts a statement."""
        _statements_total.labels(unit).inc()
        for recording in self._recordings:
            recording.append(Statement(unit, sql))

    def translate(self, error: Exception) -> Exception:
        """The error of ours that a driver error means."""
        # A server that says nothing for longer than it may work at a statement is as good as gone.
        if is_broken(error) or isinstance(error, TimeoutError):
            # The other connections most likely lead to the same place, so all of them are made anew.
            self._expire_pool()
        return translate(error)

    def _expire_pool(self) -> None:
        # All of them break at once, and those that are new already need not be made again for each that is found.
        if perf_counter() - self._expired_at < _EXPIRY_SECONDS:
            return
        self._expired_at = perf_counter()
        for pool in (self._pool, self._export_pool):
            if pool is not None:
                pool.expire()

    @asynccontextmanager
    async def _lease(
        self, unit: str, *, writes: bool = False, is_export: bool = False, sees: Sequence[str] = ()
    ) -> AsyncIterator[ConnectionLease]:
        pool = self._export_pool if is_export else self._pool
        if pool is None:
            raise DatabaseUnavailable
        lease = ConnectionLease(self, pool, unit, self._settings.acquire_timeout, writes=writes)
        if sees and self._replicas is not None and (replica := await self._replicas.choose(sees)) is not None:
            lease.prefer(replica, replica.export_pool if is_export else replica.pool)
        await lease.begin()
        try:
            yield lease
        finally:
            await lease.end()

    async def _ask(self, sql: str) -> Any:
        async with self.read("database.position") as conn:
            return await conn.fetchval(sql)

    async def _roll_back(self, conn: ReadConn, lease: ConnectionLease) -> None:
        """Ends a transaction, or the connection if that cannot be done at once."""
        if conn.is_interrupted:
            lease.discard()
            return
        try:
            self.count_statement("rollback", "ROLLBACK")
            await lease.connection.execute("ROLLBACK", timeout=self._settings.acquire_timeout)
        except BaseException:  # noqa: BLE001 - whatever the reason, this connection must not be used again.
            lease.discard()

    async def _run_after_commit_shielded(self, tx: Tx) -> None:
        if tx.has_after_commit_work:
            # A caller that goes away now must not take the after-commit work with it.
            await asyncio.shield(self._background.spawn(self._run_after_commit(tx)))

    def _run_after_commit_detached(self, tx: Tx | None, error: BaseException) -> None:
        """The same where the caller is no longer there to wait: it was cancelled, or cut off, after the commit."""
        if tx is None or not tx.may_have_committed:
            return
        if not tx.has_committed and isinstance(error.__cause__, TimeoutError):
            # Here and now, because the next writer is woken by this very error.
            self._sync_standby.check_unanswered()
        self._background.spawn(self._run_after_commit(tx) if tx.has_committed else self._reconcile_unknown_commit(tx))

    async def _reconcile_unknown_commit(self, tx: Tx) -> None:
        """It is unknown whether a cut-off commit took place; running its after-commit work twice does no harm."""
        await self._run_after_commit(tx)
        await self._sync_standby.wait_until_resumed()
        # The server may have been at work on it until now.
        await asyncio.sleep(self._settings.statement_timeout)
        await self._sync_standby.wait_until_resumed()
        await self._run_after_commit(tx)

    async def _run_after_commit(self, tx: Tx) -> None:
        if not tx.has_after_commit_work:
            return
        if self._replicas is not None and tx.emitted:
            await self._replicas.remember_commit(tx.emitted)
        await tx.run_after_commit(self._handlers)

    async def _warm_up(self) -> None:
        """Fills the pool, so that the first requests need not wait for connections."""
        pool = self._pool
        if pool is None:
            return
        connections: list[Any] = []
        try:
            for _ in range(self._settings.pool_size):
                # One by one, so that those there are given back when the next one fails.
                connections.append(await pool.acquire(self._settings.connect_timeout))  # noqa: PERF401 - see above
        except (*CONNECT_ERRORS, PoolExhausted) as error:
            _logger.warning("database.unreachable_at_start", error=type(error).__name__)
        finally:
            # Shielded, so that a shutdown at this very moment leaves none of them behind.
            await asyncio.shield(asyncio.gather(*(pool.release(connection) for connection in connections)))
