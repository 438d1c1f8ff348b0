"""A streaming replica of an embedded Postgres, its promotion, and a primary that waits for one that is not there."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg

from app.dev.embedded import THROWAWAY_POSTGRES, EmbeddedPostgres
from app.dev.embedded.privileges import make_private_dir, server_user
from app.dev.embedded.processes import run_to_end
from tests.fixtures.servers import Connection
from tests.fixtures.waiting import eventually

WAITING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND datname = current_database()"
GIVE_UP_WAITING = """
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
 WHERE wait_event = 'SyncRep' AND datname = current_database()
"""
"""What was written is there afterwards, and its writer learns that the connection is lost."""


def make_standby(
    primary: EmbeddedPostgres, data_dir: Path, settings: Mapping[str, str] = THROWAWAY_POSTGRES
) -> EmbeddedPostgres:
    """A started hot standby that follows `primary`, its data in the new folder `data_dir`; `settings` as there."""
    programs = primary._programs
    user = server_user(data_dir, [programs / "postgres", programs / "pg_basebackup"])
    make_private_dir(data_dir, user)
    run_to_end(
        [
            programs / "pg_basebackup",
            *("--dbname", primary.dsn("postgres")),
            *("--pgdata", data_dir),
            "--write-recovery-conf",
            "--wal-method=stream",
            "--checkpoint=fast",
            "--no-sync",
        ],
        user=user,
    )
    standby = EmbeddedPostgres(data_dir, settings=settings, die_with_parent=True, programs=programs)
    standby.start()
    return standby


def promote(standby: EmbeddedPostgres) -> None:
    """Makes it a primary; it takes writes when this returns."""
    run_to_end(
        [
            standby._programs / "psql",
            *("--no-psqlrc", "--quiet", "--set", "ON_ERROR_STOP=1"),
            *("--dbname", standby.dsn("postgres")),
            *("--command", "SELECT pg_promote(wait => true)"),
        ],
        user=None,
    )


def rewind(former: EmbeddedPostgres, primary: EmbeddedPostgres) -> None:
    """Makes a primary that was replaced, and does not run, a standby of its successor."""
    programs, folder = former._programs, former._data_dir
    # A killed server leaves its lock behind.
    (folder / "postmaster.pid").unlink(missing_ok=True)
    run_to_end(
        [
            programs / "pg_rewind",
            *("--target-pgdata", folder),
            *("--source-server", primary.dsn("postgres")),
            "--write-recovery-conf",
            "--no-sync",
        ],
        user=server_user(folder, [programs / "pg_rewind"]),
    )


@asynccontextmanager
async def standby_missing(connection: Connection, database_url: str) -> AsyncIterator[None]:
    """Inside the block every commit waits for a synchronous standby; at its end they are answered."""
    await _wait_for(connection, "absent")
    try:
        probe = await asyncpg.connect(database_url)
        try:
            # The server learns of it in its own time.
            waiting = asyncio.create_task(_commit_for_ever(probe))
            await eventually(lambda: _waits(connection, probe.get_server_pid()))
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        finally:
            probe.terminate()
        yield
    finally:
        await _wait_for(connection, "")


async def _commit_for_ever(connection: Connection) -> None:
    while True:
        await connection.execute("SELECT pg_logical_emit_message(true, 'probe', '')")


async def _waits(connection: Connection, pid: int) -> bool:
    return bool(await connection.fetchval(f"{WAITING} AND pid = $1", pid))


async def _wait_for(connection: Connection, standby: str) -> None:
    await connection.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{standby}'")
    await connection.execute("SELECT pg_reload_conf()")
