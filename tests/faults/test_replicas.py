"""Read replicas: a writer sees its own writes, whatever the replica has replayed; and no read fails because of one."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest
import redis

from app.dev.embedded import EmbeddedPostgres, EmbeddedValkey
from app.kernel.cache import FORGET_TOPIC
from app.kernel.cache.wal_positions import WalPositions
from app.kernel.database import Database, DatabaseUnavailable
from app.main import create_app
from app.settings import load_settings
from tests.faults.signals import frozen
from tests.faults.standby import make_standby, promote
from tests.fixtures.lives import first_life
from tests.fixtures.people import register
from tests.fixtures.servers import Connection
from tests.fixtures.waiting import eventually
from tests.kernel.conftest import OpenDatabase, OpenRedis, client_of

TABLES = "CREATE TABLE notes (text text)"
COUNT = "SELECT count(*) FROM notes"
IS_REPLICA = "SELECT pg_is_in_recovery()"


@pytest.fixture
async def at_replica(replica_url: str) -> AsyncIterator[Connection]:
    """A connection to the replica, as soon as it knows the database of this test."""
    connection = None

    async def is_there() -> bool:
        nonlocal connection
        try:
            connection = await asyncpg.connect(replica_url)
        except asyncpg.InvalidCatalogNameError:
            return False
        return True

    await eventually(is_there)
    assert connection is not None
    yield connection
    connection.terminate()


@pytest.fixture
def max_lag() -> float:
    """Seconds; longer than a machine stands still."""
    return 600


@pytest.fixture
async def database(
    open_database: OpenDatabase,
    open_redis: OpenRedis,
    connection: Connection,
    at_replica: Connection,
    replica_url: str,
    max_lag: float,
) -> Database:
    """A gateway whose replica is in use."""
    await connection.execute(TABLES)
    database = await open_database(replica_urls=replica_url, replica_max_lag=max_lag)
    database.bind_positions(WalPositions(await open_redis(), first_life()))
    database.on_commit(FORGET_TOPIC, ignore)
    await eventually(lambda: asks_replica(database))
    return database


async def ignore(_: object) -> None:
    """A gateway alone has no cache that takes what is forgotten."""


async def asks_replica(database: Database, tag: str = "unwritten") -> bool:
    async with database.read("test.read", sees=[tag]) as conn:
        return bool(await conn.fetchval(IS_REPLICA))


async def count(database: Database, tag: str) -> int:
    async with database.read("test.read", sees=[tag]) as conn:
        number: int = await conn.fetchval(COUNT)
        return number


async def write(database: Database, tag: str) -> None:
    async with database.statement("test.write") as tx:
        tx.emit(FORGET_TOPIC, tag)
        await tx.execute("INSERT INTO notes VALUES ('text')")


@asynccontextmanager
async def paused(at_replica: Connection) -> AsyncIterator[None]:
    """The replica replays nothing inside the block."""
    await at_replica.execute("SELECT pg_wal_replay_pause()")

    async def is_paused() -> bool:
        return bool(await at_replica.fetchval("SELECT pg_get_wal_replay_pause_state() = 'paused'"))

    try:
        await eventually(is_paused)
        yield
    finally:
        await at_replica.execute("SELECT pg_wal_replay_resume()")


async def test_only_who_can_bear_it_reads_from_a_replica(database: Database) -> None:
    assert await asks_replica(database)
    async with database.snapshot("test.export", sees=["unwritten"]) as conn:
        assert await conn.fetchval(IS_REPLICA) is True
    async with database.read("test.read") as conn, database.snapshot("test.export") as export:
        assert await conn.fetchval(IS_REPLICA) is False
        assert await export.fetchval(IS_REPLICA) is False


async def test_a_replica_that_has_not_replayed_a_write_is_not_asked_for_it(
    database: Database, at_replica: Connection
) -> None:
    async with paused(at_replica):
        await write(database, "mine")
        assert (await asks_replica(database, "mine"), await count(database, "mine")) == (False, 1)
        # Others, who have not written, may well see the past.
        assert (await asks_replica(database, "other"), await count(database, "other")) == (True, 0)
    await eventually(lambda: asks_replica(database, "mine"))
    assert await count(database, "mine") == 1


async def test_redis_may_lose_what_it_knows(database: Database, at_replica: Connection, valkey: EmbeddedValkey) -> None:
    async with paused(at_replica):
        await write(database, "mine")
        with redis.Redis.from_url(valkey.url()) as client:
            client.flushall()
        assert await count(database, "mine") == 1
        valkey.stop()
        try:
            assert await count(database, "mine") == 1
            await write(database, "mine")
        finally:
            valkey.start()
        assert await count(database, "mine") == 2
    await eventually(lambda: asks_replica(database, "mine"))
    assert await count(database, "mine") == 2


@pytest.mark.parametrize("max_lag", [1])
async def test_a_lagging_replica_is_left_alone_until_it_has_caught_up(
    database: Database, connection: Connection, at_replica: Connection
) -> None:
    async def is_ejected() -> bool:
        # A primary that writes nothing has no replica that lags.
        await connection.execute("INSERT INTO notes VALUES ('beside the gateway')")
        return not await asks_replica(database)

    async with paused(at_replica):
        await eventually(is_ejected)
    await eventually(lambda: asks_replica(database))


@asynccontextmanager
async def load(database: Database) -> AsyncIterator[list[bool]]:
    """Eight readers; the block may see which of their reads a replica answered. One that failed fails the test."""
    done: list[bool] = []
    ended = asyncio.Event()

    async def read() -> None:
        while not ended.is_set():
            done.append(await asks_replica(database))

    async with asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(read())
        try:
            yield done
        finally:
            ended.set()


async def test_no_read_fails_when_the_replica_is_killed(database: Database, standby: EmbeddedPostgres) -> None:
    async with load(database) as done:
        await eventually(lambda: any(done))
        standby.stop(mode="immediate")
        try:
            done.clear()
            await eventually(lambda: len(done) > 100)
            assert not any(done[-50:])
        finally:
            standby.start()
        await eventually(lambda: done[-1])


async def test_no_read_fails_when_the_replica_is_frozen(database: Database, standby: EmbeddedPostgres) -> None:
    pid = standby.pid()
    assert pid is not None
    async with load(database) as done:
        await eventually(lambda: any(done))
        with frozen(pid):
            done.clear()
            # Those that wait for it go on when it is given up; it stays frozen until they do.
            await eventually(lambda: len(done) > 100)
        await eventually(lambda: done[-1])


async def test_every_process_shows_what_any_of_them_has_written(
    environment: dict[str, str], at_replica: Connection, replica_url: str, frozen_garbage: None
) -> None:
    settings = load_settings(environment | {"DATABASE_REPLICA_URLS": replica_url, "APP_CACHE_ENABLED": "false"})
    apps = [create_app(settings) for _ in range(2)]
    async with client_of(apps[0]) as client, client_of(apps[1]) as other:
        person = await register(client)
        for app in apps:
            await eventually(lambda app=app: asks_replica(app.state.resources.db))  # type: ignore[misc]
        async with paused(at_replica):
            assert (await person.post("/v1/events", json={"kind": "page.viewed"})).status_code == 201
            for each in (client, other):
                page = await each.get("/v1/users/me/events", headers=person.headers)
                assert [event["kind"] for event in page.json()["items"]] == ["page.viewed"]


async def test_without_replicas_nothing_is_asked(open_database: OpenDatabase, open_redis: OpenRedis) -> None:
    database = await open_database()
    database.bind_positions(WalPositions(await open_redis(), first_life()))
    database.on_commit(FORGET_TOPIC, ignore)
    with database.recorder() as seen:
        async with database.statement("test.write") as tx:
            tx.emit(FORGET_TOPIC, "mine")
            await tx.execute("SELECT 1")
        assert await asks_replica(database, "mine") is False
    assert [statement.sql for statement in seen] == ["SELECT 1", IS_REPLICA]


async def says(connection: Connection, question: str) -> bool:
    return bool(await connection.fetchval(question))


async def is_written(database: Database, tag: str) -> bool:
    try:
        await write(database, tag)
    except DatabaseUnavailable:
        return False
    return True


async def test_a_replica_that_went_another_way_than_the_new_primary_is_not_asked(
    open_database: OpenDatabase,
    open_redis: OpenRedis,
    connection: Connection,
    at_replica: Connection,
    database_url: str,
    replica_url: str,
    postgres: EmbeddedPostgres,
    servers_directory: Path,
) -> None:
    await connection.execute(TABLES)
    name = database_url.removeprefix("postgresql://postgres@/").partition("?")[0]
    successor = make_standby(postgres, servers_directory / f"successor-{uuid4().hex}")
    try:
        folders = [str(server.host) for server in (postgres, successor)]
        url = f"postgresql://postgres@/{name}?host={','.join(folders)}"
        database = await open_database(url=url, replica_urls=replica_url)
        database.bind_positions(WalPositions(await open_redis(), first_life()))
        database.on_commit(FORGET_TOPIC, ignore)
        at_successor = await asyncpg.connect(successor.dsn(name))
        await at_successor.execute("ALTER SYSTEM SET primary_conninfo = ''")
        await at_successor.execute("SELECT pg_reload_conf()")
        await eventually(lambda: says(at_successor, "SELECT count(*) = 0 FROM pg_stat_wal_receiver"))
        # What the successor does not get: more than it will write itself.
        await connection.execute("CREATE TABLE lost AS SELECT number FROM generate_series(1, 100000) AS number")
        written = await connection.fetchval("SELECT pg_current_wal_flush_lsn()::text")
        await eventually(lambda: says(at_replica, f"SELECT pg_last_wal_replay_lsn() >= '{written}'"))
        await eventually(lambda: asks_replica(database))
        postgres.stop(mode="immediate")
        promote(successor)
        await eventually(lambda: is_written(database, "mine"))
        assert await says(at_successor, f"SELECT pg_current_wal_insert_lsn() < '{written}'")
        assert (await asks_replica(database, "mine"), await count(database, "mine")) == (False, 1)

        async def asks_primary() -> bool:
            return not await asks_replica(database, "other")

        # Nor is it asked for what has not been written since, because it shows what is lost.
        await eventually(asks_primary)
        at_successor.terminate()
    finally:
        successor.stop(mode="immediate")
        postgres.start()
