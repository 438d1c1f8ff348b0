"""The database gateway while its server is away, hangs, changes or breaks the connections."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest
import uvloop

from app.dev.embedded import EmbeddedPostgres
from app.kernel.database import CopyConn, Database, DatabaseUnavailable, SessionLost, StatementTimeout
from app.kernel.database.pools import Hosts
from app.kernel.schema.migrations import with_connection
from app.settings import process_environ
from tests.faults.proxy import Proxy, black_hole
from tests.faults.signals import frozen
from tests.faults.standby import make_standby, promote
from tests.fixtures.servers import Connection
from tests.fixtures.waiting import eventually, in_time, scaled
from tests.kernel.conftest import OpenDatabase, pool_becomes_whole

# Waits for as long as the test holds the lock.
WAIT = "SELECT pg_advisory_xact_lock_shared(7)"
WAITING = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
PID = "SELECT pg_backend_pid()"


async def answers(database: Database) -> bool:
    try:
        async with database.read("test.again") as conn:
            return bool(await conn.fetchval("SELECT 1") == 1)
    except DatabaseUnavailable:
        return False


async def answers_again(database: Database) -> None:
    await eventually(lambda: answers(database))


async def test_killed_and_restarted_server(open_database: OpenDatabase, postgres: EmbeddedPostgres) -> None:
    database = await open_database(pool_size=4, acquire_timeout=0.25, connect_timeout=1, statement_timeout=300)
    await answers_again(database)
    postgres.stop(mode="immediate")
    try:
        # No request waits for the server, which comes back only afterwards.
        async with in_time():
            assert await asyncio.gather(*(answers(database) for _ in range(8))) == [False] * 8
            with pytest.raises(DatabaseUnavailable) as raised:
                async with database.transaction("test.unit") as tx:
                    await tx.fetchval("SELECT 1")
        assert (raised.value.status, raised.value.code) == (503, "database_unavailable")
        assert raised.value.headers == {"Retry-After": "1"}
    finally:
        postgres.start()
    await answers_again(database)
    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(answers_again(database))
    await pool_becomes_whole(database)


async def test_frozen_server(open_database: OpenDatabase, postgres: EmbeddedPostgres) -> None:
    database = await open_database(pool_size=2, acquire_timeout=0.25, statement_timeout=0.2, connect_timeout=0.3)
    await answers_again(database)
    pid = postgres.pid()
    assert pid is not None
    with frozen(pid):
        async with in_time():
            for _ in range(2):
                with pytest.raises(DatabaseUnavailable):
                    async with database.transaction("test.unit") as tx:
                        await tx.fetchval("SELECT 1")
    await answers_again(database)
    await pool_becomes_whole(database)


async def test_no_server_at_the_start(open_database: OpenDatabase, postgres: EmbeddedPostgres) -> None:
    postgres.stop(mode="immediate")
    try:
        database = await open_database(acquire_timeout=0.25)
        with pytest.raises(DatabaseUnavailable):
            async with database.read("test.read"):
                pass
    finally:
        postgres.start()
    await answers_again(database)


@pytest.fixture
async def database(open_database: OpenDatabase, to_postgres: Proxy) -> Database:
    """A gateway behind the proxy, whose pool is full of connections."""
    database = await open_database(url=to_postgres.url, pool_size=4)
    await eventually(lambda: to_postgres.accepted == 4)
    await answers_again(database)
    return database


async def are_waiting(connection: Connection, number: int) -> bool:
    """Whether so many statements are under way."""
    return bool(await connection.fetchval(WAITING) == number)


async def test_reads_do_not_notice_that_all_connections_broke(
    database: Database, connection: Connection, to_postgres: Proxy
) -> None:
    async def read() -> str:
        async with database.read("test.read") as conn:
            await conn.fetchval(WAIT)
            # The second statement shows that the unit goes on where it was moved to.
            return str(await conn.fetchval("SELECT 'read'"))

    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock(7)")
        reading = [asyncio.create_task(read()) for _ in range(4)]
        await eventually(lambda: are_waiting(connection, 4))
        to_postgres.reset()
    assert await asyncio.gather(*reading) == ["read"] * 4
    await pool_becomes_whole(database)


async def test_a_terminated_backend_costs_a_write_but_no_read(
    database: Database, connection: Connection, to_postgres: Proxy
) -> None:
    pids: list[int] = []

    async def read() -> int:
        async with database.read("test.read") as conn:
            pids.append(await conn.fetchval(PID))
            await conn.fetchval(WAIT)
            return int(await conn.fetchval(PID))

    async def write() -> None:
        async with database.transaction("test.write") as tx:
            pids.append(await tx.fetchval(PID))
            await tx.execute(WAIT)

    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock(7)")
        reading, writing = asyncio.create_task(read()), asyncio.create_task(write())
        await eventually(lambda: are_waiting(connection, 2))
        terminate = "SELECT bool_and(pg_terminate_backend(pid, 10000)) FROM unnest($1::int[]) AS pid"
        assert await connection.fetchval(terminate, pids)
    assert await reading not in pids[:2]
    # How far it came is unknown, so it is not sent again.
    with pytest.raises(SessionLost):
        await writing
    async with database.transaction("test.write") as tx:
        assert await tx.fetchval("SELECT 1") == 1
    await pool_becomes_whole(database)


async def test_a_transaction_may_begin_on_a_dead_connection(database: Database, to_postgres: Proxy) -> None:
    async def write() -> None:
        async with database.transaction("test.write") as tx:
            assert await tx.fetchval("SELECT 1") == 1

    to_postgres.slow_down(towards="client", latency=60)
    writing = asyncio.create_task(write())
    # While BEGIN is under way.
    await asyncio.sleep(0.1)
    to_postgres.reset()
    await to_postgres.restore()
    await writing


async def test_a_read_is_sent_again_once_only(open_database: OpenDatabase, to_postgres: Proxy) -> None:
    database = await open_database(url=to_postgres.url, pool_size=1)
    await answers_again(database)

    async def cut() -> None:
        while True:
            await asyncio.sleep(0.05)
            to_postgres.reset()

    cutting = asyncio.create_task(cut())
    # Sent again for ever, it would be cut for ever.
    async with in_time():
        with pytest.raises(DatabaseUnavailable):
            async with database.read("test.read") as conn:
                await conn.fetchval("SELECT pg_sleep(300)")
    cutting.cancel()


async def test_a_host_that_swallows_packets_costs_a_tenth_of_a_second(
    open_database: OpenDatabase, to_postgres: Proxy
) -> None:
    with black_hole() as port:
        url = to_postgres.url.replace("127.0.0.1:", f"127.0.0.1:{port},127.0.0.1:")
        # Were the second host asked only after the first had its time, no connection would be made within that time.
        database = await open_database(url=url, connect_timeout=30)
        async with database.read("test.read") as conn:
            assert await conn.fetchval("SELECT 1") == 1


async def test_who_has_no_time_for_all_hosts_goes_on_where_they_stopped(
    open_database: OpenDatabase, to_postgres: Proxy
) -> None:
    with black_hole() as first, black_hole() as second, black_hole() as third:
        hosts = ",".join(f"127.0.0.1:{port}" for port in (first, second, third))
        url = to_postgres.url.replace("127.0.0.1:", f"{hosts},127.0.0.1:")
        database = await open_database(url=url, connect_timeout=5, acquire_timeout=0.25)
        await answers_again(database)


async def test_a_host_that_was_slow_once_need_not_wait_for_one_that_says_nothing(
    database_url: str, to_postgres: Proxy
) -> None:
    async with Proxy.before(database_url) as hung:
        hung.freeze()
        url = to_postgres.url.replace("127.0.0.1:", f"127.0.0.1:{hung.port},127.0.0.1:")
        hosts = Hosts(url)
        (await hosts.connect(timeout=scaled(10))).terminate()
        async with to_postgres.frozen():
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(hosts.connect(timeout=10), 0.25)
        asked, hung_asked = to_postgres.accepted, hung.accepted
        connecting = asyncio.create_task(hosts.connect(timeout=scaled(10)))
        await eventually(lambda: (to_postgres.accepted, hung.accepted) != (asked, hung_asked))
        assert to_postgres.accepted == asked + 1
        (await connecting).terminate()


@pytest.mark.parametrize("hosts", [1, 2])
async def test_a_dsn_takes_nothing_about_its_server_from_the_shell(
    to_postgres: Proxy, monkeypatch: pytest.MonkeyPatch, hosts: int
) -> None:
    other = {"PGPORT": "1", "PGSSLMODE": "verify-full", "PGSSLNEGOTIATION": "direct", "PGTARGETSESSIONATTRS": "standby"}
    for name, value in (other | {"PGSSLROOTCERT": "/nonexistent", "PGSSLCERT": "/nonexistent"}).items():
        monkeypatch.setenv(name, value)
    process_environ()
    host = f"127.0.0.1:{to_postgres.port}"
    path = urlsplit(to_postgres.url).path
    connection = await Hosts(f"postgresql://postgres@{','.join([host] * hosts)}{path}").connect(timeout=scaled(10))
    try:
        assert await connection.fetchval("SELECT pg_is_in_recovery()") is False
    finally:
        await connection.close()
    # Nor does a port that is left out come from there.
    assert Hosts("postgresql://postgres@db.example/onehop")._hosts == [("db.example", 5432)]


async def test_each_connection_gives_up_a_machine_that_acknowledges_nothing(to_postgres: Proxy) -> None:
    connection = await Hosts(to_postgres.url).connect(timeout=0.3)
    way = connection._transport.get_extra_info("socket")
    assert way.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 900
    connection.terminate()


@pytest.mark.skipif(os.geteuid() != 0, reason="newer kernels let only root put a filter on a TCP socket")
async def test_a_machine_that_is_gone_is_noticed_before_a_statement_is_late(
    open_database: OpenDatabase, to_postgres: Proxy
) -> None:
    url = to_postgres.url
    database = await open_database(url=url, pool_size=1, connect_timeout=0.3, statement_timeout=300)
    await answers_again(database)
    to_postgres.cut_off()
    # Long before the five minutes that a statement may take.
    async with in_time():
        with pytest.raises(SessionLost):
            async with database.statement("test.write") as tx:
                await tx.execute("SELECT 1")
    await to_postgres.restore()
    await answers_again(database)


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
async def test_a_connection_lost_as_soon_as_it_is_made_is_no_error_of_ours(
    run: Callable[[Awaitable[None]], None], to_postgres: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = asyncpg.connect

    async def connect_and_lose(*arguments: Any, **options: Any) -> Any:
        connection = await connect(*arguments, **options)
        connection.terminate()
        await asyncio.sleep(0.01)
        return connection

    async def ask() -> None:
        lost = await Hosts(to_postgres.url).connect(timeout=scaled(10))
        with pytest.raises(asyncpg.InterfaceError):
            await lost.fetchval("SELECT 1")

    monkeypatch.setattr(asyncpg, "connect", connect_and_lose)
    await asyncio.to_thread(run, ask())


async def test_an_export_may_take_and_idle_longer_than_a_transaction(open_database: OpenDatabase) -> None:
    database = await open_database(idle_in_transaction_timeout=0.1, transaction_timeout=0.1)
    numbers = []
    async with database.snapshot("test.export") as conn:
        async for row in conn.cursor("SELECT generate_series(1, 3) AS number", prefetch=1):
            numbers.append(row["number"])
            await asyncio.sleep(0.4)
    assert numbers == [1, 2, 3]


MANY = "SELECT generate_series(1, 10000000) AS number"
Read = Callable[[CopyConn, Callable[[], Awaitable[None]]], Awaitable[None]]


async def count(conn: CopyConn, begun: Callable[[], Awaitable[None]]) -> None:
    await begun()
    await conn.fetchval("SELECT 1")


async def iterate(conn: CopyConn, begun: Callable[[], Awaitable[None]]) -> None:
    async for row in conn.cursor(MANY, prefetch=1):
        if row["number"] == 1:
            await begun()


async def copy(conn: CopyConn, begun: Callable[[], Awaitable[None]]) -> None:
    pieces = 0

    async def take(_: bytes) -> None:
        nonlocal pieces
        pieces += 1
        if pieces == 1:
            await begun()

    await conn.copy_to(MANY, output=take)


async def test_an_export_gives_a_hung_server_up_and_its_connection_back(
    open_database: OpenDatabase, to_postgres: Proxy
) -> None:
    reads: list[Read] = [count, iterate, copy]
    database = await open_database(url=to_postgres.url, export_pool_size=len(reads), export_timeout=1)
    all_begun = asyncio.Barrier(len(reads) + 1)

    async def begun() -> None:
        await all_begun.wait()
        # Here the server stops.
        await all_begun.wait()

    async def export(read: Read) -> None:
        async with database.snapshot("test.export") as conn:
            await read(conn, begun)

    exports = [asyncio.create_task(export(read)) for read in reads]
    await all_begun.wait()
    to_postgres.freeze()
    await all_begun.wait()
    # Without the second that a piece may take they would wait for ever.
    async with in_time():
        outcomes = await asyncio.gather(*exports, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [StatementTimeout] * len(reads)
    await to_postgres.restore()
    async with AsyncExitStack() as stack:
        for _ in reads:
            conn = await stack.enter_async_context(database.snapshot("test.export"))
            assert await conn.fetchval("SELECT 1") == 1


async def test_an_export_may_take_long_as_long_as_it_goes_on(open_database: OpenDatabase) -> None:
    database = await open_database(export_timeout=1)
    pieces: list[bytes] = []

    async def take_slowly(piece: bytes) -> None:
        pieces.append(piece)
        await asyncio.sleep(1.2 if len(pieces) == 1 else 0)

    async def copy_slowly() -> int:
        async with database.snapshot("test.export") as conn:
            return await conn.copy_to("SELECT generate_series(1, 100000)", output=take_slowly)

    async def iterate_slowly() -> list[int]:
        async with database.snapshot("test.export") as conn:
            sql = "SELECT number, pg_sleep(0.4) FROM generate_series(1, 3) AS number"
            return [row["number"] async for row in conn.cursor(sql, prefetch=1)]

    copied, iterated = await asyncio.gather(copy_slowly(), iterate_slowly())
    assert (copied, iterated) == (100_000, [1, 2, 3])
    assert b"".join(pieces) == b"".join(b"%d\n" % number for number in range(1, 100_001))


@pytest.fixture
async def successor(postgres: EmbeddedPostgres, servers_directory: Path) -> AsyncIterator[EmbeddedPostgres]:
    """A replica that the test may promote."""
    standby = make_standby(postgres, servers_directory / "successor")
    yield standby
    standby.stop(mode="immediate")


async def test_failover(
    open_database: OpenDatabase, postgres: EmbeddedPostgres, database_url: str, successor: EmbeddedPostgres
) -> None:
    name = database_url.removeprefix("postgresql://postgres@/").partition("?")[0]
    folders = [str(server.host) for server in (successor, postgres)]
    url = f"postgresql://postgres@/{name}?host={','.join(folders)}"
    database = await open_database(url=url)
    async with database.statement("test.write") as tx:
        # Of the two, the one that takes writes is found.
        await tx.execute("CREATE TABLE notes AS SELECT 'acknowledged' AS text")

    async def is_replayed() -> bool:
        try:
            connection = await asyncpg.connect(successor.dsn(name))
        except asyncpg.InvalidCatalogNameError:
            return False
        try:
            return bool(await connection.fetchval("SELECT to_regclass('notes') IS NOT NULL"))
        finally:
            await connection.close()

    await eventually(is_replayed)
    # Migrations find it too.
    assert await with_connection(url, lambda at: at.exec_driver_sql("SELECT pg_is_in_recovery()").scalar()) is False
    only_successor = await open_database(url=successor.dsn(name))
    # What a demoted primary says.
    with pytest.raises(DatabaseUnavailable) as raised:
        async with only_successor.statement("test.write") as tx:
            await tx.execute("INSERT INTO notes VALUES ('too early')")
    assert raised.value.status == 503
    postgres.stop(mode="immediate")
    try:
        with pytest.raises(DatabaseUnavailable):
            async with database.statement("test.write") as tx:
                await tx.execute("INSERT INTO notes VALUES ('refused')")
        promote(successor)
        for each in (database, only_successor):
            await answers_again(each)
            async with each.transaction("test.write") as tx:
                await tx.execute("INSERT INTO notes VALUES ('after')")
        async with database.read("test.read") as conn:
            stored = [row["text"] for row in await conn.fetch("SELECT text FROM notes")]
        assert stored == ["acknowledged", "after", "after"]
    finally:
        postgres.start()
