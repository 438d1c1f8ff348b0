"""Schema migrations: alembic with SQL written by hand, over asyncpg.

The functions may be called inside a running event loop and from any working directory. They need a direct
connection to Postgres, not one through PgBouncer: a session advisory lock keeps two runners from migrating at
the same time.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
from alembic import command
from alembic.config import Config
from alembic.ddl.postgresql import PostgresqlImpl
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Column, Connection, MetaData, PrimaryKeyConstraint, Table, Text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from app.kernel.database.pools import Hosts
from app.kernel.errors import NotFound

ROOT = Path(__file__).resolve().parents[3]

# A migration that cannot get its lock soon must give up: behind it in the lock queue stands every request.
TIMEOUTS = "SET lock_timeout = '4s'; SET statement_timeout = '60s'"

# A runner that waits inside this statement would be a transaction, and CREATE INDEX CONCURRENTLY waits for those.
TAKE_LOCK = "SELECT pg_try_advisory_lock(hashtext('onehop.migrations'))"
_OTHER_RUNNERS_SECONDS = 120
_ASK_AGAIN_SECONDS = 0.1

T = TypeVar("T")


class VersionTable(PostgresqlImpl):
    """Alembic's own table with a `text` column, so that a revision id may be longer than 32 characters."""

    __dialect__ = "postgresql"

    def version_table_impl(
        self, *, version_table: str, version_table_schema: str | None, version_table_pk: bool, **_: Any
    ) -> Table:
        table = Table(
            version_table,
            MetaData(),
            Column("version_num", Text, nullable=False),
            schema=version_table_schema,
        )
        if version_table_pk:
            table.append_constraint(PrimaryKeyConstraint("version_num", name=f"{version_table}_pkc"))
        return table


class NoSuchRevision(NotFound):
    in_api = False
    code = "no_such_revision"
    title = "There is no such revision"


async def upgrade(dsn: str, revision: str = "head") -> None:
    """Raises NoSuchRevision."""
    await _migrate(command.upgrade, dsn, revision)


async def downgrade(dsn: str, revision: str) -> None:
    """Raises NoSuchRevision."""
    await _migrate(command.downgrade, dsn, revision)


async def _migrate(step: Callable[[Config, str], None], dsn: str, revision: str) -> None:
    try:
        await with_connection(dsn, lambda connection: step(_config(connection), revision))
    except CommandError as error:
        raise NoSuchRevision(str(error)) from error


async def status(dsn: str) -> tuple[str | None, str | None]:
    """The revision the database is at and the newest one there is; None stands for an empty database."""
    current = await with_connection(
        dsn, lambda connection: MigrationContext.configure(connection).get_current_revision(), locked=False
    )
    return current, ScriptDirectory.from_config(_config()).get_current_head()


async def with_connection(dsn: str, work: Callable[[Connection], T], *, locked: bool = True) -> T:
    """Run `work` on one connection of its own, alone among all runners unless `locked` is false."""

    async def connect() -> "asyncpg.Connection[asyncpg.Record]":
        connection: asyncpg.Connection[asyncpg.Record] = await Hosts(dsn).connect(timeout=10)
        try:
            async with asyncio.timeout(_OTHER_RUNNERS_SECONDS):
                while locked and not await connection.fetchval(TAKE_LOCK):  # noqa: ASYNC110 - it has to ask
                    await asyncio.sleep(_ASK_AGAIN_SECONDS)
            await connection.execute(TIMEOUTS)
        except BaseException:
            connection.terminate()
            raise
        return connection

    engine = create_async_engine("postgresql+asyncpg://", async_creator=connect, poolclass=NullPool)
    try:
        async with engine.connect() as connection:
            return await connection.run_sync(work)
    finally:
        await engine.dispose()


def _config(connection: Connection | None = None) -> Config:
    # Not from alembic.ini, in which a per cent sign in the path of this folder would mean something.
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(ROOT / "alembic").replace("%", "%%"))
    return config
