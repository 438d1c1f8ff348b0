"""The connections of the database gateway: snapshots, those past a pooler, and what a session carries."""

from urllib.parse import urlsplit

import pytest

from app.kernel.database import Database, DatabaseUnavailable
from tests.fixtures.servers import Connection
from tests.kernel.accounts import ADD, AMOUNTS, bounds_transactions
from tests.kernel.conftest import OpenDatabase

# NULL where the server does not know it.
TRANSACTION_TIMEOUT = "SELECT current_setting('transaction_timeout', true)"


async def test_snapshot_sees_one_state(database: Database, accounts: Connection) -> None:
    chunks: list[bytes] = []

    async def write(data: bytes) -> None:
        chunks.append(data)

    async with database.snapshot("test.export") as conn:
        assert await conn.fetchval(AMOUNTS) == [10, 10]
        await accounts.execute(ADD, "a", 1)
        assert await conn.fetchval(AMOUNTS) == [10, 10]
        rows = [tuple(row) async for row in conn.cursor("SELECT name, amount FROM accounts ORDER BY name", prefetch=1)]
        assert rows == [("a", 10), ("b", 10)]
        sql = "SELECT name, amount FROM accounts WHERE amount >= $1 ORDER BY name"
        assert await conn.copy_to(sql, 10, output=write, format="csv", header=True) == 2
        # A write in it is our mistake, and stays one.
        with pytest.raises(DatabaseUnavailable):
            await conn.fetch("UPDATE accounts SET amount = 0")
    assert b"".join(chunks) == b"name,amount\na,10\nb,10\n"
    assert await accounts.fetchval(AMOUNTS) == [11, 10]


async def test_direct_connection_keeps_session_locks(database: Database, accounts: Connection) -> None:
    async with database.connect("test.leader") as conn:
        assert await conn.fetchval("SELECT pg_try_advisory_lock(7)") is True
        assert await accounts.fetchval("SELECT pg_try_advisory_lock(7)") is False
        assert await conn.execute("SELECT 1") == "SELECT 1"
        assert await conn.fetchval("SELECT current_setting('application_name')") == "onehop:test.leader"


async def test_direct_connection_goes_past_a_pooler(open_database: OpenDatabase, database_url: str) -> None:
    database = await open_database(direct_url=urlsplit(database_url)._replace(path="/postgres").geturl())
    async with database.read("test.pooled") as conn:
        assert await conn.fetchval("SELECT current_database()") == urlsplit(database_url).path[1:]
    async with database.connect("test.direct") as direct:
        assert await direct.fetchval("SELECT current_database()") == "postgres"


async def test_connections_carry_no_session_state(open_database: OpenDatabase, accounts: Connection) -> None:
    database = await open_database(pool_size=1, statement_timeout=7)
    async with database.transaction("test.unit") as tx:
        await tx.execute("SET LOCAL statement_timeout = 77")
    async with database.read("test.read") as conn:
        assert await conn.fetchval("SHOW statement_timeout") == "7s"
        assert await conn.fetchval(TRANSACTION_TIMEOUT) == ("30s" if bounds_transactions(accounts) else None)
        assert await conn.fetchval("SHOW TimeZone") == "UTC"
    behind_a_pooler = await open_database(session_settings="false")
    async with behind_a_pooler.read("test.read") as conn:
        assert await conn.fetchval("SHOW statement_timeout") == "0"
        assert await conn.fetchval(TRANSACTION_TIMEOUT) == ("0" if bounds_transactions(accounts) else None)


async def test_unopened_gateway_is_unavailable(database_url: str, open_database: OpenDatabase) -> None:
    database = await open_database()
    await database.close()
    with pytest.raises(DatabaseUnavailable):
        async with database.read("test.read"):
            pass
