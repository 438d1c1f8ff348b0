"""Units of work as the caller sees them: what one may do with a connection while it is lent."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol

import asyncpg

from app.kernel.telemetry import get_logger

Row = asyncpg.Record

_logger = get_logger(__name__)


class Gateway(Protocol):
    """What a unit tells its gateway, and asks of it."""

    def note(self, unit: str, sql: str) -> None: ...

    def translate(self, error: Exception) -> Exception: ...


class ReadConn:
    """Reads on one connection. Statements see the newest committed rows, each for itself."""

    __slots__ = ("_connection", "_database", "_interrupted", "_unit")

    def __init__(self, database: Gateway, connection: Any, unit: str) -> None:
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

    def __init__(self, database: Gateway, connection: Any, unit: str, *, single: bool) -> None:
        super().__init__(database, connection, unit)
        self._after_commit: list[Callable[[], Awaitable[None]]] = []
        self._emitted: dict[str, list[Any]] = {}
        self._statements_left = 1 if single else -1
        # Whether the statement sent next, or last, makes the unit's changes permanent.
        self._commits = single
        self._has_committed = False

    @property
    def has_statements_left(self) -> bool:
        """Whether another statement may follow; not so behind the one of a single-statement unit."""
        return self._statements_left != 0

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
