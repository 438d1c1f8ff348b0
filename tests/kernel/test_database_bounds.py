"""Every wait for a connection, a statement or a lock has an end, and waiters are not overtaken."""

import asyncio
import time
from contextlib import AsyncExitStack, nullcontext

import pytest

from app.kernel.database import DatabaseUnavailable, PoolExhausted
from tests.fixtures.servers import Connection
from tests.fixtures.waiting import eventually, in_time
from tests.kernel.accounts import ADD, AMOUNTS, WAITING, bounds_transactions
from tests.kernel.conftest import OpenDatabase, pool_becomes_whole


async def test_full_pool_answers_soon(open_database: OpenDatabase, accounts: Connection) -> None:
    database = await open_database(pool_size=1, acquire_timeout=0.2)
    async with database.read("test.holder"):
        started = time.perf_counter()
        async with in_time():
            with pytest.raises(PoolExhausted) as raised:
                async with database.read("test.other"):
                    pass
        assert time.perf_counter() - started >= 0.2
    assert (raised.value.status, raised.value.code) == (503, "pool_exhausted")
    assert raised.value.headers == {"Retry-After": "1"}
    async with database.read("test.other") as conn:
        assert await conn.fetchval("SELECT 1") == 1


async def test_reads_go_on_while_writes_wait(open_database: OpenDatabase, accounts: Connection) -> None:
    database = await open_database(pool_size=5, acquire_timeout=1, lock_timeout=60, statement_timeout=300)
    await pool_becomes_whole(database)

    async def add() -> None:
        async with database.statement("test.add") as tx:
            await tx.execute(ADD, "a", 1)

    async def writers_wait() -> bool:
        return bool(await accounts.fetchval(WAITING) == 4)

    async with AsyncExitStack() as reads:
        for _ in range(5):
            await reads.enter_async_context(database.read("test.holder"))
        for _ in range(5):
            with pytest.raises(PoolExhausted):
                await add()
    async with accounts.transaction():
        await accounts.execute(ADD, "a", 1)
        # As many as ever: those that waited in vain hold nothing.
        writers = [asyncio.create_task(add()) for _ in range(4)]
        await eventually(writers_wait)
        with pytest.raises(PoolExhausted):
            await add()
        async with database.read("test.read") as conn:
            assert await conn.fetchval(AMOUNTS) == [10, 10]
    await asyncio.gather(*writers)
    assert await accounts.fetchval(AMOUNTS) == [15, 10]


async def test_nobody_overtakes_who_waits_for_a_connection(open_database: OpenDatabase, accounts: Connection) -> None:
    database = await open_database(pool_size=1)
    order = []

    async def read(name: str) -> None:
        async with database.read("test.read"):
            order.append(name)

    async with database.read("test.holder"):
        waiting = [asyncio.create_task(read(name)) for name in ("first", "second")]
        await asyncio.sleep(0.02)
    # In the same turn of the loop in which the first of them is woken.
    await read("newcomer")
    await asyncio.gather(*waiting)
    assert order == ["first", "second", "newcomer"]


async def test_slow_statement_is_stopped_by_the_server(open_database: OpenDatabase, accounts: Connection) -> None:
    database = await open_database(statement_timeout=1)
    async with in_time():
        with pytest.raises(DatabaseUnavailable):
            async with database.transaction("test.slow") as tx:
                await tx.execute(ADD, "a", 1)
                await tx.fetchval("SELECT pg_sleep(300)")
    assert await accounts.fetchval(AMOUNTS) == [10, 10]
    running = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query = 'SELECT pg_sleep(300)'"
    assert await accounts.fetchval(running) == 0
    await pool_becomes_whole(database)


async def test_a_transaction_of_many_statements_is_ended_by_the_server(
    open_database: OpenDatabase, accounts: Connection
) -> None:
    database = await open_database(transaction_timeout=0.5)
    is_bounded = bounds_transactions(accounts)
    slept = 0
    with pytest.raises(DatabaseUnavailable) if is_bounded else nullcontext():
        async with database.transaction("test.long") as tx:
            await tx.execute(ADD, "a", 1)
            for _ in range(200 if is_bounded else 10):
                await tx.fetchval("SELECT pg_sleep(0.05)")
                slept += 1
    # None of the statements is long; all of them together would be ten seconds.
    assert slept <= 10 if is_bounded else slept == 10
    assert await accounts.fetchval(AMOUNTS) == ([10, 10] if is_bounded else [11, 10])
    await pool_becomes_whole(database)


async def test_lock_is_not_waited_for_long(open_database: OpenDatabase, accounts: Connection) -> None:
    database = await open_database(lock_timeout=0.2)
    async with accounts.transaction():
        await accounts.execute(ADD, "a", 1)
        started = time.perf_counter()
        # The lock is held until the end of this block.
        async with in_time():
            with pytest.raises(DatabaseUnavailable):
                async with database.statement("test.blocked") as tx:
                    await tx.execute(ADD, "a", 100)
        assert time.perf_counter() - started >= 0.2
    assert await accounts.fetchval(AMOUNTS) == [11, 10]
