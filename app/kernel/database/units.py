"""Units of work as the caller sees them: the operations on a leased connection."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Protocol

import asyncpg
from asyncpg.protocol import NO_TIMEOUT

from app.kernel.database.failures import StatementTimeout
from app.kernel.observability.telemetry import get_logger

Row = asyncpg.Record

_logger = get_logger(__name__)


class Gateway(Protocol):
    """What a unit tells its gateway, and asks of it."""

    def count_statement(self, unit: str, sql: str) -> None: ...

    def translate(self, error: Exception) -> Exception: ...


Renew = Callable[[Exception], Awaitable[Any]]


class ReadConn:
    """Reads on one connection. Statements see the newest committed rows, each for itself."""

    __slots__ = ("_connection", "_database", "_interrupted", "_renew", "_unit")

    def __init__(self, database: Gateway, connection: Any, unit: str, renew: Renew | None = None) -> None:
        """`renew` gives another connection after an error that speaks for trying once more there, else None."""
        self._database = database
        self._connection = connection
        self._unit = unit
        self._renew = renew
        # Set while a statement is under way, and left set when it was cut off: such a connection is never used again.
        self._interrupted = False

    async def fetch(self, sql: str, *args: Any) -> list[Row]:
        """All rows."""
        result: list[Row] = await self._run("fetch", sql, *args)
        return result

    async def fetchrow(self, sql: str, *args: Any) -> Row | None:
        """The first row, or None."""
        result: Row | None = await self._run("fetchrow", sql, *args)
        return result

    async def fetchval(self, sql: str, *args: Any) -> Any:
        """The first column of the first row, or None."""
        return await self._run("fetchval", sql, *args)

    def stay(self) -> None:
        """From now on a statement depends on those before it, and cannot be moved to another connection."""
        self._renew = None

    async def _run(self, method: str, sql: str, *args: Any, **options: Any) -> Any:
        self._database.count_statement(self._unit, sql)
        self._interrupted = True
        try:
            result = await getattr(self._connection, method)(sql, *args, **options)
        except (
            asyncpg.PostgresError,
            asyncpg.InterfaceError,
            asyncpg.InternalClientError,
            OSError,
            TimeoutError,
        ) as error:
            # A server that answered is in step again, and a value that was never sent has changed nothing.
            self._interrupted = isinstance(error, asyncpg.PostgresConnectionError) or not isinstance(
                error, asyncpg.PostgresError | asyncpg.DataError
            )
            renew, self._renew = self._renew, None
            connection = await renew(error) if renew is not None else None
            if connection is None:
                raise self._meaning_of(error) from error
            self._connection = connection
        else:
            self._interrupted = False
            return result
        return await ReadConn._run(self, method, sql, *args, **options)

    def _meaning_of(self, error: Exception) -> Exception:
        meaning = self._database.translate(error)
        # One of the system, which has a number, is about the connection.
        is_ours = isinstance(error, TimeoutError) and error.errno is None
        return StatementTimeout() if is_ours else meaning

    @property
    def is_interrupted(self) -> bool:
        """Whether a statement was cut off, which leaves the connection in an unknown state."""
        return self._interrupted


class Tx(ReadConn):
    """A unit of work that may write. What has to follow a commit is registered here and nowhere else."""

    __slots__ = ("_after_commit", "_commits", "_emitted", "_has_committed", "_statements_left", "skips_events")

    def __init__(
        self, database: Gateway, connection: Any, unit: str, renew: Renew | None = None, *, single: bool
    ) -> None:
        super().__init__(database, connection, unit, renew)
        self._after_commit: list[Callable[[], Awaitable[None]]] = []
        self._emitted: dict[str, list[Any]] = {}
        self._statements_left = 1 if single else -1
        # Whether the statement sent next, or last, makes the unit's changes permanent.
        self._commits = single
        self._has_committed = False
        # Whether an event of this unit has no subscriber, so that there is nothing to publish.
        self.skips_events = False

    @property
    def unit(self) -> str:
        """The name of the use case."""
        return self._unit

    @property
    def has_statements_left(self) -> bool:
        """Whether another statement may follow; not so behind the one of a single-statement unit."""
        return self._statements_left != 0

    async def execute(self, sql: str, *args: Any) -> str:
        """Runs a statement; the answer is its command tag, such as `UPDATE 3`."""
        result: str = await self._run("execute", sql, *args)
        return result

    def after_commit(self, callback: Callable[[], Awaitable[None]]) -> None:
        """`callback` runs once this unit has committed, before the caller goes on; never after a rollback."""
        self._after_commit.append(callback)

    def emit(self, topic: str, item: Any) -> None:
        """Hands `item` to the handler of `topic` after the commit, together with all others of this unit."""
        self._emitted.setdefault(topic, []).append(item)

    async def _run(self, method: str, sql: str, *args: Any, **options: Any) -> Any:
        if self._statements_left == 0:
            message = f"{self._unit}: a single-statement unit cannot run a second statement"
            raise RuntimeError(message)
        self._statements_left -= 1
        result = await super()._run(method, sql, *args, **options)
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
    def emitted(self) -> "Mapping[str, list[Any]]":
        """The items of each topic."""
        return self._emitted

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

        async def run(name: str, callback: Callable[[], Awaitable[None]]) -> None:
            try:
                await callback()
            except Exception:
                _logger.exception("database.after_commit_failed", unit=self._unit, work=name)

        if len(work) == 1:
            await run(*work[0])
        else:
            # Side by side, because each waits for another round trip and the caller waits for all of them.
            await asyncio.gather(*(run(name, callback) for name, callback in work))


class CopyConn(ReadConn):
    """One unchanging view of the database for a long read, which may go on for any time, but not stand still."""

    __slots__ = ("_copy_timeout",)

    def __init__(
        self, database: Gateway, connection: Any, unit: str, renew: Renew | None = None, *, copy_timeout: float
    ) -> None:
        """`copy_timeout`: seconds for each piece of a COPY. The connection bounds statements and a cursor's batches."""
        super().__init__(database, connection, unit, renew)
        self._copy_timeout = copy_timeout

    async def cursor(self, sql: str, *args: Any, prefetch: int) -> AsyncIterator[Row]:
        """Rows one by one, `prefetch` of them in memory at a time."""
        self._database.count_statement(self._unit, sql)
        try:
            async for row in self._connection.cursor(sql, *args, prefetch=prefetch):
                yield row
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
            self._interrupted = True
            raise self._meaning_of(error) from error

    async def copy_to(self, sql: str, *args: Any, output: Callable[[bytes], Awaitable[None]], **options: Any) -> int:
        """Streams `COPY (sql) TO` into `output`; the answer is the number of rows. `options` are asyncpg's."""
        loop = asyncio.get_running_loop()

        async def pass_on(piece: bytes) -> None:
            # The consumer may be slow; only a wait for Postgres is bounded.
            watch.reschedule(None)
            await output(piece)
            watch.reschedule(loop.time() + self._copy_timeout)

        try:
            async with asyncio.timeout(self._copy_timeout) as watch:
                # asyncpg's own time-out is one for the whole.
                tag: str = await self._run("copy_from_query", sql, *args, output=pass_on, timeout=NO_TIMEOUT, **options)
        except TimeoutError as error:
            raise self._meaning_of(error) from error
        return int(tag.removeprefix("COPY "))


class DirectConn(ReadConn):
    """A connection of its own, outside the pool, for what a pooler cannot carry: session locks and LISTEN."""

    __slots__ = ()

    async def execute(self, sql: str, *args: Any) -> str:
        """Runs a statement; the answer is its command tag."""
        result: str = await self._run("execute", sql, *args)
        return result
